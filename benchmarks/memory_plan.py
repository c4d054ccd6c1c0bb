"""What a device would hold in training DiT-XL/2 or SDXL, on meshes that nobody has to own.

    python -m benchmarks.memory_plan [--model dit_xl|sdxl] [--devices 1,8,64,256] [--batch_per_device 4] [--tensor 1]
        [--dtype bfloat16]

The train step is compiled for so many fake CPU devices, from shapes alone: nothing is allocated and nothing runs. The
compiler partitions it as it would for a pod and says what each device needs (`memory_analysis`). State is exact. What
is temporary depends on the backend: the CPU's attention stores all its scores, so a GPU or TPU needs rather less, and
what the recomputing of blocks saves (config.model.remat) does not show on a CPU.

Compiling all blocks would take long and say no more: memory is linear in the number of blocks, so networks with few are
compiled and the line through them is followed.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

GIB = 2**30
SDXL_DEPTH = (1, 2, 10)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device: parameters, optimiser and averages; and what a step needs beside them."""

    state: float
    temporary: float

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.state + other.state, self.temporary + other.temporary)

    def times(self, factor: float) -> Memory:
        return Memory(self.state * factor, self.temporary * factor)


def dit_xl(depth: int, dtype: str) -> tuple[Any, dict[str, tuple[Sequence[int], str]]]:
    """DiT-XL/2 with so many blocks instead of 28, on 32x32 latents of 1,000 classes, and the shapes of an example."""
    from diffusion_jax import config as experiment
    from diffusion_jax.config import build

    config = experiment.default()
    config.data.image_size, config.data.channels = 32, 4
    config.model.update({"name": "dit", "width": 1152, "depth": depth, "num_heads": 16})
    config.method.update({"bound": "hybrid", "class_conditional": True})
    config.training.compute_dtype = dtype
    return build.method(config, 1000), {"image": ((32, 32, 4), "float32"), "label": ((), "int32")}


class SDXL:
    """The epsilon loss of SDXL's U-Net on 128x128 latents, with the texts' encodings given."""

    def __init__(self, depth: tuple[int, int, int], dtype: str):
        from benchmarks.memory import SDXL as network

        self.network = network.clone(transformer_depth=depth, dtype=dtype)

    def init(self, key: Any, batch: Any) -> Any:
        one = {name: value[:1] for name, value in batch.items()}
        return self.network.init(key, one["image"], *self._conditions(one))["params"]

    def loss(self, params: Any, batch: Any, key: Any, step: Any) -> Any:
        import jax
        import jax.numpy as jnp

        noise = jax.random.normal(key, batch["image"].shape)
        out: Any = self.network.apply({"params": params}, batch["image"] + noise, *self._conditions(batch))
        loss = jnp.mean(jnp.square(out - noise), axis=(1, 2, 3))
        return loss.mean(), {"loss": (loss, jnp.ones_like(loss))}

    def _conditions(self, batch: Any) -> tuple[Any, ...]:
        added = {"text_embeds": batch["pooled"], "time_ids": batch["time_ids"]}
        return batch["time"], batch["text"], None, added


def sdxl(depth: tuple[int, int, int], dtype: str) -> tuple[Any, dict[str, tuple[Sequence[int], str]]]:
    """SDXL with so many transformer blocks a level, and the shapes of an example."""
    shapes = {"image": (128, 128, 4), "text": (77, 2048), "pooled": (1280,), "time_ids": (6,)}
    return SDXL(depth, dtype), {
        **{name: (shape, "float32") for name, shape in shapes.items()},
        "time": ((), "int32"),
    }


BUILDERS: dict[str, Callable[..., Any]] = {"dit_xl": dit_xl, "sdxl": sdxl}


def compiled(method: Any, example: dict[str, tuple[Sequence[int], str]], mesh: Any, batch_size: int) -> Memory:
    """The memory of one device in a train step of Adam with an average of the parameters."""
    import jax

    from diffusion_jax.training import ema, optimizer, sharding, state, step

    update, _ = optimizer.make_optimizer("adam")
    split = sharding.batch_sharding(mesh)
    example = {**example, "position": ((), "int32")}
    batch = {
        name: jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=split)
        for name, (shape, dtype) in example.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(lambda key, batch: state.initial(method, update, key, batch), key, batch)
    shapes = sharding.sharded_shapes(mesh, shapes)
    shardings = sharding.state_shardings(mesh, shapes)
    run = step.make_train_step(method, update, ema.make_ema("ddpm"), mesh, shardings, matmul_precision="default")
    analysis = run.lower(shapes, batch, key).compile().memory_analysis()
    held = sum(_bytes(leaf) for leaf in jax.tree.leaves(shapes))
    total = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return Memory(held, total + analysis.temp_size_in_bytes - held)


def _bytes(leaf: Any) -> int:
    size = leaf.dtype.itemsize
    for length in leaf.sharding.shard_shape(leaf.shape):
        size *= length
    return size


def planned(model: str, measure: Callable[[Any], Memory]) -> Memory:
    """The memory of the whole network, from `measure` of networks with few blocks."""
    if model == "dit_xl":
        two, four = measure(2), measure(4)
        return two + (four + two.times(-1)).times((28 - 2) / 2)
    base, middle, last = (measure(depth) for depth in ((1, 1, 1), (1, 2, 1), (1, 1, 2)))
    more = [(middle, SDXL_DEPTH[1] - 1), (last, SDXL_DEPTH[2] - 1)]
    return sum(((deeper + base.times(-1)).times(count) for deeper, count in more), start=base)


def mesh_shape(devices: int, tensor: int) -> tuple[int, int, int]:
    """(data, fsdp, tensor): parameters over up to 64 devices, which are copied beyond."""
    fsdp = min(64, devices // tensor)
    return devices // fsdp // tensor, fsdp, tensor


def table(model: str, counts: Sequence[int], batch_per_device: int, tensor: int, dtype: str) -> Iterator[str]:
    """The lines of the plan, one for each number of devices."""
    import jax

    from diffusion_jax.training import sharding

    yield f"{model}, {dtype}, batch {batch_per_device} a device; GiB on each device"
    yield f"{'devices':>8} {'data x fsdp x tensor':>21} {'batch':>6} {'state':>8} {'step':>8} {'in all':>8}"
    for count in counts:
        shape = mesh_shape(count, tensor)
        mesh = sharding.make_mesh(*shape, devices=jax.devices()[:count])
        batch_size = batch_per_device * shape[0] * shape[1]

        def measure(depth: Any, mesh: Any = mesh, batch_size: int = batch_size) -> Memory:
            method, example = BUILDERS[model](depth, dtype)
            return compiled(method, example, mesh, batch_size)

        memory = planned(model, measure)
        state, temporary = memory.state / GIB, memory.temporary / GIB
        axes = " x ".join(map(str, shape))
        yield f"{count:>8} {axes:>21} {batch_size:>6} {state:>8.3f} {temporary:>8.3f} {state + temporary:>8.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(BUILDERS), default="dit_xl")
    parser.add_argument("--devices", default="1,8,64,256")
    parser.add_argument("--batch_per_device", type=int, default=4)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    counts = [int(count) for count in options.devices.split(",")]
    if "jax" in sys.modules:
        raise SystemExit("JAX is there already; run this module as the program")
    os.environ["JAX_PLATFORMS"] = "cpu"
    # The machine code is never run, so it need not be good.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={max(counts)} --xla_backend_optimization_level=0"
    for line in table(options.model, counts, options.batch_per_device, options.tensor, options.dtype):
        print(line, flush=True)


if __name__ == "__main__":
    main()
