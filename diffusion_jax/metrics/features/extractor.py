"""What turns images into features: a pure function, its parameters, and everything that its numbers depend on."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

Apply = Callable[[Any, jax.Array], dict[str, jax.Array]]
Fit = Callable[[Any], Any]
Setting = str | int | float | bool
# The precisions that an extractor can run in, as they are written in its settings.
EXACT, FAST = "float32-highest", "fast"


@dataclass(frozen=True)
class Extractor:
    """A feature extractor with all that belongs in the protocol of a score.

    Attributes:
      name: of the network and its training, never "inception" for anything but the Inception of FID.
      apply: (params, images uint8 [B, H, W, 3]) -> arrays with a leading axis B, float32; pure and jittable.
        "features" [B, feature_dim] is always there; Inception adds pool, logits, logits_unbiased, spatial and taps.
      params: the first argument of apply.
      feature_dim: width of "features".
      weights_sha256: of the canonical tensors (:func:`weights_sha256`): one for all files that hold these weights.
      settings: input size, resize, precision and whatever else changes the numbers.
      fit: images uint8 [B, H, W, 3] as what `apply` makes of them first: levels float32 of the network's size, by NumPy
        or in a program. apply_fitted: what `apply` does with those. None where there is only `apply`.
      apply_unrounded: the same as `apply` of levels float32, 0 to 255, that were not rounded; None if it has no such.
    """

    name: str
    apply: Apply
    params: Any
    feature_dim: int
    weights_sha256: str
    settings: Mapping[str, Setting]
    apply_unrounded: Apply | None = None
    fit: Fit | None = None
    apply_fitted: Apply | None = None


def weights_sha256(params: Any) -> str:
    """SHA-256 of a tree of arrays: name, dtype, shape and little-endian bytes of every leaf, in the order of the names.

    The names are the paths in the tree joined by "/", so the hash does not depend on the file that the weights
    came from.
    """
    leaves, _ = jax.tree.flatten_with_path(params)
    named = {"/".join(str(getattr(key, "key", key)) for key in path): np.asarray(leaf) for path, leaf in leaves}
    digest = hashlib.sha256()
    for name in sorted(named):
        array = np.asarray(named[name], dtype=named[name].dtype.newbyteorder("<"), order="C")
        digest.update(f"{name}:{array.dtype.name}:{array.shape}\n".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()


def unflattened(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The tree whose paths, joined by "/", are the names."""
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *scopes, last = name.split("/")
        node = tree
        for scope in scopes:
            node = node.setdefault(scope, {})
        node[last] = leaf
    return tree


def precision_name(fast: bool) -> str:
    """How the precision is written in the settings."""
    return FAST if fast else EXACT


def checked_batch(images: jax.Array, channels: int = 3, dtype: str = "uint8") -> jax.Array:
    """The images, if they are [B, H, W, channels] of that dtype; raises ValueError otherwise."""
    if images.dtype != dtype or images.ndim != 4 or images.shape[-1] != channels:
        raise ValueError(f"images must be {dtype} [B, H, W, {channels}], got {images.dtype} {tuple(images.shape)}")
    return images
