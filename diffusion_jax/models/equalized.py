"""Layers with an equalised learning rate: weights of unit variance that are scaled whenever they are used.

Under an optimiser whose steps do not hang on the gradient's size, as Adam's, all weights so learn at the same relative
speed (Karras et al. 2018, arXiv:1710.10196, section 4.1).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from diffusion_jax.models.layers import LAYOUT, matmul, normal
from diffusion_jax.models.upfirdn import upfirdn

# Of the resampling of StyleGAN2's layers.
BLUR = (1, 3, 3, 1)
_SLOPE = 0.2


def leaky_relu(x: jax.Array, gain: float = math.sqrt(2)) -> jax.Array:
    """A leaky ReLU of slope 0.2, times `gain`, by default the one that about keeps the variance."""
    return nn.leaky_relu(x, _SLOPE) * gain


class EqualizedDense(nn.Module):
    """A linear layer over the last axis, [..., in] -> [..., features].

    learning_rate: of this layer, relative to others; bias_value: of the bias at first.
    """

    features: int
    learning_rate: float = 1.0
    bias_value: float = 0.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = normal(1 / self.learning_rate)
        kernel = self.param("kernel", init, (x.shape[-1], self.features), jnp.float32)
        start = nn.initializers.constant(self.bias_value / self.learning_rate)
        bias = self.param("bias", start, (self.features,), jnp.float32)
        kernel = kernel * (self.learning_rate / math.sqrt(x.shape[-1]))
        return matmul(x.astype(self.dtype), kernel.astype(self.dtype)) + (bias * self.learning_rate).astype(self.dtype)


class EqualizedConv(nn.Module):
    """A convolution [B, H, W, in] -> [B, H, W, features]; one that goes down halves the sides, blurred before it."""

    features: int
    kernel_size: int = 3
    down: bool = False
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = equalized_kernel(self, x.shape[-1], self.features, self.kernel_size)
        x = convolve_down(x.astype(self.dtype), kernel) if self.down else convolve(x.astype(self.dtype), kernel)
        if not self.use_bias:
            return x
        return x + self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32).astype(self.dtype)


def equalized_kernel(module: nn.Module, channels: int, features: int, size: int) -> jax.Array:
    """The module's parameter "kernel" [size, size, channels, features], scaled for use."""
    kernel = module.param("kernel", normal(1.0), (size, size, channels, features), jnp.float32)
    return kernel / math.sqrt(size * size * channels)


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution [B, H, W, in] -> [B, H, W, out] whose result has the size of the image."""
    if kernel.shape[:2] == (1, 1):
        return matmul(x, kernel[0, 0].astype(x.dtype))
    return lax.conv_general_dilated(x, kernel.astype(x.dtype), (1, 1), "SAME", dimension_numbers=LAYOUT)


def convolve_up(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, in] -> [B, 2H, 2W, out]: zeros between the pixels, the convolution, then the blur."""
    size = kernel.shape[0]
    wide = lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        (1, 1),
        [(size - 1, size - 1)] * 2,
        lhs_dilation=(2, 2),
        dimension_numbers=LAYOUT,
    )
    # From 2 H + size - 2 pixels, which begin (size - 1) // 2 before the image, to 2 H.
    total = len(BLUR) + 1 - size
    return upfirdn(wide, BLUR, border=(total - total // 2, total // 2), gain=4)


def convolve_down(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, H, W, in] -> [B, H / 2, W / 2, out]: the blur, then every second pixel of the convolution."""
    reach = len(BLUR) // 2 - 1 + kernel.shape[0] // 2
    if kernel.shape[0] == 1:  # the blur alone halves
        return convolve(upfirdn(x, BLUR, down=2, border=(reach, reach)), kernel)
    blurred = upfirdn(x, BLUR, border=(reach, reach))
    return lax.conv_general_dilated(blurred, kernel.astype(x.dtype), (2, 2), "VALID", dimension_numbers=LAYOUT)
