"""Where arrays live: one mesh of devices, batches split over it, parameters split or repeated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXES = ("data", "fsdp", "tensor")
# Every device along these axes works on other examples.
BATCH_AXES = ("data", "fsdp")
# Smaller arrays are repeated: gathering them would cost more than they take.
MIN_SHARDED_SIZE = 1024


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None) -> Mesh:
    """The mesh (data, fsdp, tensor) of all devices of all hosts, or of those given.

    `data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits the work on one example.
    One of the sizes may be -1: as many as are left.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes: dict[str, int] = dict(zip(AXES, (data, fsdp, tensor), strict=True))
    free = [axis for axis, size in sizes.items() if size == -1]
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            raise ValueError(f"mesh.{axis} is {size}; it must be at least 1, or -1 for as many as are left")
    if len(free) > 1:
        raise ValueError(f"mesh.{free[0]} and mesh.{free[1]} are both -1; only one of them can be what is left")
    if free:
        sizes[free[0]] = len(devices) // math.prod(size for size in sizes.values() if size > 0)
    if math.prod(sizes.values()) != len(devices):
        shape = ", ".join(f"{axis} {size}" for axis, size in zip(AXES, (data, fsdp, tensor), strict=True))
        raise ValueError(f"mesh is {shape}; the sizes must multiply to the number of devices, which is {len(devices)}")
    shape = tuple(sizes.values())
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def check_batch_size(mesh: Mesh, batch_size: int, accumulation_steps: int = 1) -> None:
    """Raises ValueError unless the global batch splits evenly over devices and accumulation steps."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    parts = shards * accumulation_steps
    if batch_size % parts:
        raise ValueError(
            f"training.batch_size is {batch_size}; it must be a multiple of {parts} "
            f"({shards} devices along {' and '.join(BATCH_AXES)} x {accumulation_steps} accumulation steps)"
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Every device holds its share of the first axis; devices along `tensor` hold the same."""
    return NamedSharding(mesh, P(BATCH_AXES))


def parameter_spec(shape: Sequence[int], fsdp: int) -> P:
    """The largest axis that `fsdp` divides is split, the last of equals; without one the array is repeated."""
    divisible = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if fsdp == 1 or not divisible or math.prod(shape) < MIN_SHARDED_SIZE:
        return P()
    largest = max(divisible, key=lambda axis: (shape[axis], axis))
    return P(*(None,) * largest, "fsdp")


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of each leaf of a tree of parameters, or of a train state, whose moments have the same shapes."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, parameter_spec(leaf.shape, mesh.shape["fsdp"])), tree)


def sharded_shapes(mesh: Mesh, tree: Any) -> Any:
    """The tree with each leaf's shape, dtype and sharding in its place: what a checkpoint is restored onto."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        state_shardings(mesh, tree),
    )


def global_batch(mesh: Mesh, local: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Puts this host's rows [b, ...] onto the mesh, as its part of the global batch [b * hosts, ...].

    Host h holds rows h * b to (h + 1) * b of the global batch. "position", int32, is each row's number in it: it is
    numbered here, because the order in which a mesh lines up the hosts is the mesh's affair.
    """
    rows = len(next(iter(local.values())))
    position = np.arange(rows, dtype=np.int32) + jax.process_index() * rows
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, value, (rows * jax.process_count(), *value.shape[1:]))
        for name, value in {**local, "position": position}.items()
    }
