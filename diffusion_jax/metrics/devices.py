"""How arrays of the host get onto a mesh, whose devices may be those of several processes."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def rounded_up(size: int, mesh: Mesh) -> int:
    """The next number of rows that all devices of the mesh can share."""
    return -(-size // mesh.size) * mesh.size


def split_rows(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """An array [B, ...], B a multiple of the number of devices, with its rows split over all of them.

    Every process has the whole array; each places the parts of its own devices, and nothing is sent.
    """
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def on_every_device(mesh: Mesh, tree: Any) -> Any:
    """A tree of arrays that every process has, whole on every device."""
    whole = NamedSharding(mesh, P())
    if jax.process_count() == 1:
        return jax.device_put(tree, whole)

    def place(leaf: Any) -> jax.Array:
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, whole, lambda index: array[index])

    return jax.tree.map(place, tree)
