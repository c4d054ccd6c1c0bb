"""Our side: the train step and the sampling loop of a config, as the jobs compile them."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from diffusion_jax import platform

platform.prepare()
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # the time of compilation is one of the results
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the peer is on the same GPU

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.sides import networks, protocol  # noqa: E402
from diffusion_jax import config as experiment  # noqa: E402
from diffusion_jax import hub  # noqa: E402
from diffusion_jax.config import build  # noqa: E402
from diffusion_jax.training import sharding, state, step  # noqa: E402

# What XLA computes in: (type of activations, precision of float32 products).
PRECISIONS = {"float32": ("float32", "highest"), "tf32": ("float32", "default"), "bfloat16": ("bfloat16", "default")}


def configured(network: networks.Network, batch: int, precision: str, sampling_steps: int) -> experiment.Experiment:
    """The experiment whose steps are measured."""
    config = experiment.default()
    config.data.image_size, config.data.channels = network.image_size, network.channels
    config.method.class_conditional = network.num_classes is not None
    config.model.update(network.fields)
    config.process.update(name=network.process)
    config.method.prediction = network.prediction
    config.weighting.name = network.weighting
    config.training.batch_size = batch
    config.training.compute_dtype, config.training.matmul_precision = PRECISIONS[precision]
    config.optimizer.update(name="adam", learning_rate=1e-4, clip_norm=1.0)
    config.ema.update(kind="constant", decay=0.9999)
    config.sampling.update(name=network.sampler, num_steps=sampling_steps)
    return config


class Ours:
    def __init__(self, arguments: argparse.Namespace):
        self.network = networks.NETWORKS[arguments.network]
        self.job, batch = arguments.job, arguments.batch
        config = configured(self.network, batch, arguments.precision, arguments.sampling_steps)
        self.method = build.model(config, build.of_classes(self.network.num_classes))
        optimizer, _, decay = build.optimization(config)
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        self.rounds = arguments.rounds
        shape = (batch, *self.method.image_shape)
        random = np.random.default_rng(0)
        self.batch = sharding.global_batch(
            mesh,
            {
                "image": random.uniform(-1, 1, shape).astype(np.float32),
                "condition": {"label": random.integers(0, self.network.num_classes or 1, batch).astype(np.int32)},
            },
        )
        self.state = jax.jit(lambda key: state.create(self.method.init(key, self.batch), optimizer))(jax.random.key(0))
        self.state = self.state.replace(params=networks.perturbed(self.state.params))
        self._save(Path(arguments.folder), arguments.precision)

        begun = time.perf_counter()
        if self.job == "train":
            train = step.make_train_step(
                self.method,
                optimizer,
                decay,
                mesh,
                sharding.state_shardings(mesh, self.state),
                matmul_precision=config.training.matmul_precision,
            )
            self.compiled = train.lower(self.state, self.batch, jax.random.key(0)).compile()
        else:

            def sample(params: Any, key: jax.Array) -> jax.Array:
                keys = jax.random.split(key, batch)
                with jax.default_matmul_precision(config.training.matmul_precision):
                    return self.method.sample(params, keys, self._condition())[0]

            self.compiled = jax.jit(sample).lower(self.state.params, jax.random.key(0)).compile()
        self.compile_seconds = time.perf_counter() - begun

    def _condition(self) -> dict[str, jax.Array]:
        return {} if self.network.num_classes is None else self.batch["condition"]

    def _save(self, folder: Path, precision: str) -> None:
        """The weights in the peer's layout, and what they make of a few inputs."""
        hub.save(self.method.network, self.state.params, folder / "network")
        inputs = networks.inputs(self.network, self.method.image_shape)
        with jax.default_matmul_precision(PRECISIONS[precision][1]):
            arguments = [jnp.asarray(value) for value in inputs.values()]
            output = jax.jit(self.method.network.apply)({"params": self.state.params}, *arguments)
        np.savez(folder / "ours.npz", output=np.asarray(output, np.float32))

    def facts(self) -> dict[str, Any]:
        device = jax.devices()[0]
        return {
            "name": f"diffusion_jax (jax {jax.__version__})",
            "device": f"{device.platform} {device.device_kind}",
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(self.state.params)),
            "compile_seconds": self.compile_seconds,
        }

    def run(self) -> float:
        begun = time.perf_counter()
        for _ in range(self.rounds):
            if self.job == "train":
                self.state, done = self.compiled(self.state, self.batch, jax.random.key(0))
            else:
                done = self.compiled(self.state.params, jax.random.key(0))
        jax.block_until_ready(done)
        return time.perf_counter() - begun

    def peak_bytes(self) -> int:
        stats = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else protocol.process_peak_bytes()


if __name__ == "__main__":
    protocol.serve(lambda: Ours(networks.parse_side()))
