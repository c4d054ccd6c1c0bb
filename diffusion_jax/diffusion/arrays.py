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


def noised(x0: Number, noise: Number, alpha: Number, sigma: Number) -> Number:
    """Gives x_t = alpha x_0 + sigma noise, a sample of q(x_t | x_0), for coefficients that broadcast against both."""
    return alpha * x0 + sigma * noise


# Seeds have 64 bits, as PyTorch's.
LARGEST_SEED = 2**64 - 1


def check_seed(name: str, seed: int) -> None:
    """Raises ValueError for a seed that is none of the 2^64."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"{name} is {seed!r}; it must be a whole number from 0 to 2^64 - 1")


def key_of_seed(seed: int) -> jax.Array:
    """A PRNG key, another one for each seed from 0 to 2^64 - 1; below 2^32 it is jax.random.key(seed).

    jax.random.key alone takes seeds modulo 2^32 where JAX works with 32 bits.
    """
    check_seed("seed", seed)
    high, low = divmod(int(seed), 2**32)
    key = jax.random.key(low)
    if not high:
        return key
    words = np.array(jax.random.key_data(key))
    # Threefry's key is the seed's two words; longer keys of other generators repeat them.
    words[..., 0::2] = high
    return jax.random.wrap_key_data(jnp.asarray(words), impl=str(jax.random.key_impl(key)))


def standard_normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
    """jax.random.normal(key, shape), drawn in one dimension.

    The numbers are the same; XLA compiles the generator several times faster so, and on the CPU runs it faster too.
    """
    return jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
