"""Layers that neither grow nor shrink what passes through them (Karras et al. 2024, arXiv:2312.02696, section 2 and
appendix B). The magnitude of a tensor is its root mean square; inputs of magnitude one give outputs of magnitude one.

Weights are learnt as directions: every output channel's weights are divided by their norm whenever they are used, and
:func:`normalize_weights` puts them back on the sphere after each update of the optimiser, so that the effective
learning rate is the one that the schedule says.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from diffusion_jax.models.layers import matmul

SILU_MAGNITUDE = 0.596  # of silu(x) for x from N(0, 1), as the paper rounds it


def normalize(x: jax.Array, axis: int | Sequence[int], epsilon: float = 1e-4) -> jax.Array:
    """x divided by its magnitude along the axes, which is measured in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    magnitude = jnp.sqrt(jnp.mean(jnp.square(wide), axis=axis, keepdims=True))
    return x / (magnitude + epsilon).astype(x.dtype)


def mp_silu(x: jax.Array) -> jax.Array:
    """Equation 81."""
    return nn.silu(x) / SILU_MAGNITUDE


def mp_sum(a: jax.Array, b: jax.Array, t: float = 0.5) -> jax.Array:
    """The blend (1 - t) a + t b of uncorrelated inputs, at their magnitude (equation 88)."""
    return ((1 - t) * a + t * b) / math.sqrt((1 - t) ** 2 + t**2)


def mp_concatenate(a: jax.Array, b: jax.Array, t: float = 0.5) -> jax.Array:
    """Joined channels, to whose magnitude b contributes t and a contributes 1 - t (equation 103)."""
    width_a, width_b = a.shape[-1], b.shape[-1]
    scale = math.sqrt((width_a + width_b) / ((1 - t) ** 2 + t**2))
    return jnp.concatenate([a * (scale * (1 - t) / width_a**0.5), b * (scale * t / width_b**0.5)], axis=-1)


class MPFourier(nn.Module):
    """sqrt(2) cos(f x + p), frequencies f from N(0, (2 pi)^2) and phases p drawn once: [B] -> [B, features], float32.

    Equation 75. Neither is trained: their gradients are zero (weight decay would still shrink them).
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(2 * np.pi)
        frequencies = lax.stop_gradient(self.param("frequencies", init, (self.features,), jnp.float32))
        init = nn.initializers.uniform(2 * np.pi)
        phases = lax.stop_gradient(self.param("phases", init, (self.features,), jnp.float32))
        angles = x.astype(jnp.promote_types(x.dtype, jnp.float32))[:, None] * frequencies + phases
        return jnp.cos(angles) * math.sqrt(2)


class MPDense(nn.Module):
    """Linear layer over the last axis without bias, kernel [in, features] of normalised columns (equation 47)."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
        kernel = self.param("kernel", direction_init, (x.shape[-1], self.features), jnp.float32)
        return matmul(x.astype(self.dtype), effective_kernel(kernel, gain).astype(self.dtype))


class MPConv(nn.Module):
    """3x3 convolution without bias, [B, H, W, in] -> [B, H, W, features], kernel [3, 3, in, features] likewise."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
        kernel = self.param("kernel", direction_init, (3, 3, x.shape[-1], self.features), jnp.float32)
        return lax.conv_general_dilated(
            x.astype(self.dtype),
            effective_kernel(kernel, gain).astype(self.dtype),
            window_strides=(1, 1),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


def effective_kernel(kernel: jax.Array, gain: jax.Array | float) -> jax.Array:
    """What a layer multiplies by: unit columns times ``gain``."""
    return normalize(kernel, _input_axes(kernel)) * (gain / math.sqrt(math.prod(kernel.shape[:-1])))


def direction_init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Random directions: every output channel's weights have magnitude one.

    Drawn as a vector because a generator over four axes takes XLA's CPU compiler ten times longer.
    """
    kernel = jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)
    return normalize(kernel, _input_axes(kernel))


def normalize_weights(params: Any) -> Any:
    """The parameters with every kernel's output channels back at magnitude one (equation 66, forced normalisation).

    To be applied to the parameters after each update of the optimiser, not to averages of them.
    """

    def project(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return normalize(leaf, _input_axes(leaf)) if getattr(path[-1], "key", None) == "kernel" else leaf

    return jax.tree_util.tree_map_with_path(project, params)


def _input_axes(kernel: jax.Array) -> tuple[int, ...]:
    return tuple(range(kernel.ndim - 1))
