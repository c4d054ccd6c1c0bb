"""One formula for two worlds: float64 NumPy where tables are built, JAX arrays inside a compiled program."""

from __future__ import annotations

import math
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


def standard_normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """jax.random.normal(key, shape), drawn in one dimension.

    The numbers are the same; XLA compiles the generator several times faster so, and on the CPU runs it faster too.
    """
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
