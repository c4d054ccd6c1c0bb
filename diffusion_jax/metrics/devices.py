"""How arrays of the host get onto a mesh, whose devices may be those of several processes."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax import batching


def rounded_up(size: int, mesh: Mesh) -> int:
    """The next number of rows that all devices of the mesh can share."""
    return batching.rounded_up(size, mesh.size)


def split_rows(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """An array [B, ...], B a multiple of the number of devices, with its rows split over all of them.

    Every process has an array of this shape; each places the parts of its own devices, so only these rows of it
    (`own_rows`) need to be right, and nothing is sent.
    """
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def own_rows(mesh: Mesh, size: int) -> np.ndarray:
    """The rows [r] of an array of `size` rows that `split_rows` puts on devices of this process, ascending."""
    parts = NamedSharding(mesh, P(mesh.axis_names)).addressable_devices_indices_map((size,)).values()
    return np.sort(np.concatenate([np.arange(size)[part] for part in parts]))


def on_every_device(mesh: Mesh, tree: Any) -> Any:
    """A tree of arrays that every process has, whole on every device."""
    whole = NamedSharding(mesh, P())
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)

    def place(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, whole, lambda index: array[index])

    return jax.tree.map(place, tree)
