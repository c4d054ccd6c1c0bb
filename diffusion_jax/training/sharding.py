"""Where arrays live: one mesh of devices, batches split over it, parameters and activations split or repeated.

What the axes of a parameter mean follows from its path, so that networks need to know nothing of meshes: LOGICAL_AXES
names the last two axes of a kernel, and MESH_AXES says which mesh axis splits what has that name. Any choice gives the
same numbers: XLA moves what is needed where.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.options import described

AXES = ("data", "fsdp", "tensor")
# Every device along these axes works on other examples.
BATCH_AXES = ("data", "fsdp")
# Smaller arrays are repeated: gathering them would cost more than they take.
MIN_SHARDED_SIZE = 1024

# The end of a kernel's path -> its last two axes; the first that fits counts. In a pair of layers the first is split
# by its outputs and the second by its inputs, so that nothing moves between the two (Shoeybi et al. 2019, section 3).
LOGICAL_AXES: tuple[tuple[str, tuple[str, str]], ...] = (
    (r"(to_[qkv]|add_[qkv]_proj)/kernel$", ("features", "heads")),
    (r"net_0/proj/kernel$", ("features", "hidden")),
    (r"(to_out|to_out_0|to_add_out|proj)/kernel$", ("heads", "features")),
    (r"(mlp_1|modulation|norm1?(_context)?/linear)/kernel$", ("features", "hidden")),
    (r"(mlp_2|net_2)/kernel$", ("hidden", "features")),
    (r"conv_?[01]/kernel$", ("features", "hidden")),
    (r"conv_?2/kernel$", ("hidden", "features")),
)
MESH_AXES = {"heads": "tensor", "hidden": "tensor"}
# The name of a module whose arrays are those of several layers, stacked along a first axis that a loop goes through.
STACKED = re.compile(r"_\d+_to_\d+/")


@described(
    data="devices that split the batch; -1: all that are left",
    fsdp="devices that split the batch and the parameters",
    tensor="devices that split the work on one example",
)
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


def num_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_batch_size(mesh: Mesh, batch_size: int, accumulation_steps: int = 1) -> None:
    """Raises ValueError unless the global batch splits evenly over devices and accumulation steps."""
    shards = num_shards(mesh)
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


def parameter_spec(path: str, shape: Sequence[int], mesh_shape: Mapping[str, int]) -> P:
    """How one parameter is split: along one axis, over as many of the mesh axes as divide it evenly.

    Never along two: where the batch is split as well, XLA (jax 0.10.2) gives wrong products for two of them in a row
    (tests/training/test_sharding.py shows it).

    Args:
      path: its name, parts joined by "/". What stands before, such as the name of an optimiser's moment, is of no
        matter.
      shape: of the array. A small one is repeated on all devices.
      mesh_shape: the sizes of the mesh by axis. "tensor" splits what LOGICAL_AXES and MESH_AXES say, and "fsdp" the
        parts again; arrays without such an axis are split by "fsdp" along the largest, the last of equals.
        Stacked layers are split as one of them: a loop over layers could not take a whole one otherwise.
    """
    if STACKED.search(path):
        layer = parameter_spec(STACKED.sub("/", path), shape[1:], mesh_shape)
        return P(None, *layer) if len(layer) else P()
    if math.prod(shape) < MIN_SHARDED_SIZE:
        return P()
    fsdp = ("fsdp",) if mesh_shape["fsdp"] > 1 else ()
    names = next((names for end, names in LOGICAL_AXES if re.search(end, path)), ())
    for axis, name in zip(range(len(shape) - len(names), len(shape)), names, strict=True):
        tensor = (MESH_AXES[name],) if mesh_shape.get(MESH_AXES.get(name, ""), 1) > 1 else ()
        if tensor and shape[axis] % math.prod(mesh_shape[over] for over in tensor + fsdp) == 0:
            return P(*(None,) * axis, tensor + fsdp)
    divisible = [axis for axis, size in enumerate(shape) if size % mesh_shape["fsdp"] == 0]
    if not fsdp or not divisible:
        return P()
    return P(*(None,) * max(divisible, key=lambda axis: (shape[axis], axis)), "fsdp")


def state_shardings(mesh: Mesh, tree: Any) -> Any:
    """The sharding of each leaf of a tree of parameters, or of a train state, whose moments have the same paths."""

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, parameter_spec(name, leaf.shape, mesh.shape))

    return jax.tree_util.tree_map_with_path(sharding, tree)


@contextlib.contextmanager
def constrained_activations(mesh: Mesh, batch_size: int) -> Iterator[None]:
    """While a network is traced in here, what its modules return stays split over the batch as the batch is.

    XLA guesses the layout of activations from parameters and batch, and where those pull in two directions it may
    gather a batch on every device. batch_size: B, by which activations [B, ...] are told.
    """
    if mesh.size == 1 or batch_size % num_shards(mesh):
        yield
        return

    def constrain(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.ndim < 2 or leaf.shape[0] != batch_size:
            return leaf
        spec = P(BATCH_AXES, *(P.UNCONSTRAINED,) * (leaf.ndim - 1))
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        returned = call(*args, **kwargs)
        return jax.tree.map(constrain, returned) if context.method_name == "__call__" else returned

    with nn.intercept_methods(intercept):
        yield


def sharded_shapes(mesh: Mesh, tree: Any) -> Any:
    """The tree with each leaf's shape, dtype and sharding in its place: what a checkpoint is restored onto."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        state_shardings(mesh, tree),
    )


def global_batch(mesh: Mesh, local: Mapping[str, Any]) -> dict[str, Any]:
    """Puts this host's rows, a tree of arrays [b, ...], onto the mesh: its part of the global batch [b * hosts, ...].

    Host h holds rows h * b to (h + 1) * b of the global batch. "position", int32, is each row's number in it: it is
    numbered here, because the order in which a mesh lines up the hosts is the mesh's affair.
    """
    rows = len(jax.tree.leaves(local)[0])
    position = np.arange(rows, dtype=np.int32) + jax.process_index() * rows
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda value: jax.make_array_from_process_local_data(
            sharding, value, (rows * jax.process_count(), *value.shape[1:])
        ),
        {**local, "position": position},
    )
