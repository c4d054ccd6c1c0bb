"""Moments of one process's share of the features: python -m tests.metrics.worker FILE PORT PROCESS PROCESSES.

The last process writes the collected moments and rows to FILE. Tests start it, and read the features from `features`.
"""

import sys
from typing import Any

import jax
import numpy as np

from diffusion_jax.metrics import devices, streaming
from diffusion_jax.metrics.content import ContentHash
from diffusion_jax.metrics.extraction import Extraction
from tests.metrics import toy

DIM, ROWS, BATCH = 24, 150, 64


def features() -> np.ndarray:
    """[150, 24] float32: not centred, correlated, of unequal size."""
    random = np.random.default_rng(0)
    mixed = random.normal(size=(ROWS, DIM)) @ random.normal(size=(DIM, DIM)) + 3.0
    return (np.maximum(mixed, 0) * np.logspace(-2, 1, DIM)).astype(np.float32)


def of_images(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Moments and rows of images on the devices of all processes, as a sampler leaves them, and of the host's.

    Of the last ones each process has those of its own devices.
    """
    images = np.random.default_rng(1).integers(0, 256, (16, 4, 4, 3), np.uint8)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    extraction = Extraction(toy.extractor(), mesh, keep=["features", "logits_unbiased"])
    for count in (16, 5):
        extraction.add_sharded(jax.make_array_from_callback(images.shape, everywhere, lambda i: images[i]), count)
    extraction.add(255 - images[:3], size=8)
    own, content = devices.own_rows(mesh, 16), ContentHash()
    part = np.zeros_like(images)
    part[own] = images[own] // 2
    content.add(own, part[own])
    extraction.add_sharded(devices.split_rows(mesh, part), 16)
    mean, covariance, count = extraction.moments()
    rows = {name: extraction.rows(name) for name in extraction.keep}
    moments = {"drawn_mean": mean, "drawn_covariance": covariance, "drawn": count}
    return moments | rows | {"content": content.hexdigest(), "own": len(own)}


def main(file: str, port: str, process: int, processes: int) -> None:
    if processes > 1:
        jax.distributed.initialize(f"localhost:{port}", processes, process)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    update = jax.jit(streaming.update_shards, donate_argnums=0)
    shards = streaming.empty_shards(DIM, mesh)
    rows = BATCH // processes
    for start in range(0, ROWS, BATCH):
        batch = features()[start : start + BATCH]
        mask = np.arange(BATCH) < len(batch)
        batch = np.pad(batch, [(0, BATCH - len(batch)), (0, 0)])
        mine = slice(process * rows, (process + 1) * rows)
        shards = update(
            shards,
            jax.make_array_from_process_local_data(split, batch[mine], batch.shape),
            jax.make_array_from_process_local_data(split, mask[mine], mask.shape),
        )
    mean, covariance, count = streaming.finalize(streaming.collect(shards, mesh))
    of_drawn = of_images(mesh)
    if process == processes - 1:  # what is gathered, all have
        np.savez(file, mean=mean, covariance=covariance, count=count, **of_drawn)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
