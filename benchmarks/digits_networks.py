"""What a training step of the digits job costs with one network or another, and so why configs/digits.py has an MLP.

    python -m benchmarks.digits_networks [--repeats 5]

Prints milliseconds a step, multiply-adds an image as XLA counts them, and the ratio to the first network; repeats are
interleaved, so that whatever else the machine does falls on all alike.
"""

from __future__ import annotations

import argparse
import os
import platform as machine
import time

from diffusion_jax import platform

platform.prepare()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from configs import digits  # noqa: E402
from diffusion_jax.config import build  # noqa: E402
from diffusion_jax.training import sharding, state, step  # noqa: E402

BATCH = 128
STEPS = 5
# Two levels, 8x8 and 4x4; every candidate reaches the targets of the job if trained for long enough.
NETWORKS = {
    "mlp, 3 blocks of 384": {"name": "mlp", "width": 384, "depth": 3},
    "unet, 32 channels": {
        "name": "unet", "channels": 32, "channel_mults": (1, 2), "num_res_blocks": 1,
        "attention_resolutions": (), "mid_attention": False, "norm_groups": 8,
    },
    "unet, 64 channels": {
        "name": "unet", "channels": 64, "channel_mults": (1, 2), "num_res_blocks": 1,
        "attention_resolutions": (), "mid_attention": False, "norm_groups": 8,
    },
}  # fmt: skip


def prepare(fields: dict) -> tuple:
    """(the compiled step, its state, its batch, number of parameters, multiply-adds an image)."""
    config = digits.get_config()
    config.model.update(fields)
    method = build.model(config, build.of_classes(10))
    optimizer, _, decay = build.optimization(config)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    random = np.random.default_rng(0)
    local = {
        "image": random.uniform(-1, 1, (BATCH, 8, 8, 1)).astype(np.float32),
        "condition": {"label": random.integers(0, 10, BATCH).astype(np.int32)},
    }
    batch = sharding.global_batch(mesh, local)
    start = jax.jit(lambda key: state.create(method.init(key, batch), optimizer))(jax.random.key(0))
    compiled = step.make_train_step(method, optimizer, decay, mesh, sharding.state_shardings(mesh, start))
    compiled = compiled.lower(start, batch, jax.random.key(0)).compile()
    flops = compiled.cost_analysis()["flops"]
    return compiled, start, batch, sum(leaf.size for leaf in jax.tree.leaves(start.params)), flops / BATCH / 6


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    prepared = {name: prepare(fields) for name, fields in NETWORKS.items()}
    seconds: dict[str, list[float]] = {name: [] for name in NETWORKS}
    states = {name: entry[1] for name, entry in prepared.items()}
    for repeat in range(repeats + 1):
        for name, (compiled, _, batch, _, _) in prepared.items():
            begun = time.perf_counter()
            for _ in range(STEPS):
                states[name], _ = compiled(states[name], batch, jax.random.key(0))
            jax.block_until_ready(states[name])
            if repeat:  # the first round warms up
                seconds[name].append((time.perf_counter() - begun) / STEPS)
    first = float(np.median(seconds[next(iter(NETWORKS))]))
    print(f"jax {jax.__version__}, {machine.machine()}, {os.cpu_count()} cores, batch {BATCH}, {jnp.float32.__name__}")
    print(f"{'network':24} {'parameters':>11} {'M MAC/image':>12} {'ms/step':>9} {'ratio':>7}")
    for name, (_, _, _, parameters, macs) in prepared.items():
        median = float(np.median(seconds[name]))
        print(f"{name:24} {parameters:11,} {macs / 1e6:12.2f} {median * 1e3:9.1f} {median / first:7.1f}")


if __name__ == "__main__":
    main()
