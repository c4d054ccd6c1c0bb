"""What methods share about the examples of a batch: their randomness, and how losses are reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# {"image": [B, H, W, C], "condition": {name: a tree of [B, ...]}, "position": int32 [B]}
Batch = Mapping[str, Any]
Metrics = dict[str, tuple[jax.Array, jax.Array]]

# The training loss is reported for this many equal shares of the noise levels, the least noisy first.
NOISE_BINS = 4


def by_noise_level(name: str, values: jax.Array, weights: jax.Array, quantile: jax.Array) -> Metrics:
    """Values [B] for each of NOISE_BINS equal shares of the noise levels, the least noisy first."""
    noise_bin = jnp.minimum((quantile * NOISE_BINS).astype(jnp.int32), NOISE_BINS - 1)
    return {f"{name}_noise_{i + 1}_of_{NOISE_BINS}": (values, weights * (noise_bin == i)) for i in range(NOISE_BINS)}


def example_keys(key: jax.Array, batch: Batch) -> jax.Array:
    """One PRNG key [B] for each example, by its position in the global batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, batch["position"])
