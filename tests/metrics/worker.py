"""Moments of one process's share of the features: python -m tests.metrics.worker FILE PORT PROCESS PROCESSES.

Process 0 writes the collected moments to FILE. Tests start it, and read the features from `features`.
"""

import sys

import jax
import numpy as np

from diffusion_jax.metrics import streaming
from diffusion_jax.metrics.extraction import Extraction
from tests.metrics import toy

DIM, ROWS, BATCH = 24, 150, 64


def features() -> np.ndarray:
    """[150, 24] float32: not centred, correlated, of unequal size."""
    random = np.random.default_rng(0)
    mixed = random.normal(size=(ROWS, DIM)) @ random.normal(size=(DIM, DIM)) + 3.0
    return (np.maximum(mixed, 0) * np.logspace(-2, 1, DIM)).astype(np.float32)


def of_drawn_images(mesh: jax.sharding.Mesh) -> tuple[np.ndarray, np.ndarray, int]:
    """Moments of images that lie on the devices of all processes, as a sampler leaves them."""
    images = np.random.default_rng(1).integers(0, 256, (16, 4, 4, 3), np.uint8)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    extraction = Extraction(toy.extractor(), mesh)
    for count in (16, 5):
        extraction.add_sharded(jax.make_array_from_callback(images.shape, everywhere, lambda i: images[i]), count)
    return extraction.moments()


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
    drawn_mean, drawn_covariance, drawn = of_drawn_images(mesh)
    if process == 0:
        np.savez(
            file, mean=mean, covariance=covariance, count=count,
            drawn_mean=drawn_mean, drawn_covariance=drawn_covariance, drawn=drawn,
        )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
