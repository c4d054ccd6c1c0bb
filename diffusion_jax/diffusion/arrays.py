"""One formula for two worlds: float64 NumPy where tables are built, JAX arrays inside a compiled program."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A Python float, a NumPy array or a JAX array.
Number = Any


def namespace(value: Number) -> ModuleType:
    """jax.numpy for JAX arrays and tracers, numpy for everything else."""
    return jnp if isinstance(value, jax.Array) else np


def bcast(coefficient: jax.Array, like: jax.Array) -> jax.Array:
    """Appends axes to a [B] or scalar coefficient so that it multiplies a [B, ...] array."""
    return jnp.reshape(coefficient, coefficient.shape + (1,) * (like.ndim - coefficient.ndim)).astype(like.dtype)
