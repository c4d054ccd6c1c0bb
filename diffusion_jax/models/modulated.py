"""Convolutions whose kernel each image scales by a style of its own (Karras et al. 2020, arXiv:1912.04958)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from diffusion_jax.models.equalized import (
    EqualizedDense,
    convolve,
    convolve_up,
    equalized_kernel,
    leaky_relu,
)

_EPSILON = 1e-8


def modulated_convolution(
    x: jax.Array, kernel: jax.Array, scales: jax.Array, demodulate: bool = True, up: bool = False
) -> jax.Array:
    """Convolves image n with the kernel w'_n = scales[n, in] kernel, divided by its norm in every output channel.

    Equations 1 and 3. Scaling an input channel of the image is scaling the kernel, and so is dividing an output
    channel: one kernel serves the batch, and no kernel an image is ever made.

    Args:
      x: [B, H, W, in].
      kernel: [k, k, in, out].
      scales: [B, in], the styles.
      demodulate: divides by the norms, which brings independent inputs of variance one to outputs of variance one.
      up: doubles the sides, see `equalized.convolve_up`.

    Returns:
      [B, H, W, out], or [B, 2H, 2W, out].
    """
    h = x * scales[:, None, None, :].astype(x.dtype)
    h = convolve_up(h, kernel) if up else convolve(h, kernel)
    if not demodulate:
        return h
    squares = jnp.square(kernel).sum((0, 1))
    norms = lax.rsqrt(jnp.square(scales) @ squares.astype(scales.dtype) + _EPSILON)
    return h * norms[:, None, None, :].astype(x.dtype)


class ModulatedConv(nn.Module):
    """[B, H, W, in] and styles [B, D] -> [B, H, W, features], with noise, a bias and the activation.

    up: doubles the sides. noise: the layer adds one picture of noise to all channels, by a strength that is learnt.
    """

    features: int
    up: bool = False
    noise: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, style: jax.Array, noise_keys: jax.Array | None = None) -> jax.Array:
        """noise_keys: a PRNG key [B] for each image; without them there is no noise."""
        scales = EqualizedDense(x.shape[-1], bias_value=1.0, name="style")(style)
        kernel = equalized_kernel(self, x.shape[-1], self.features, 3)
        h = modulated_convolution(x.astype(self.dtype), kernel, scales, up=self.up)
        if self.noise:
            strength = self.param("noise_strength", nn.initializers.zeros, (), jnp.float32)
            if noise_keys is not None:
                height, width = h.shape[1:3]
                noise = jax.vmap(lambda key: jax.random.normal(key, (height * width,)))(noise_keys)
                h = h + (strength * noise).reshape(-1, height, width, 1).astype(h.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        return leaky_relu(h + bias.astype(h.dtype))


class ToImage(nn.Module):
    """[B, H, W, in] and styles [B, D] -> [B, H, W, channels], modulated but not demodulated, float32."""

    channels: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, style: jax.Array) -> jax.Array:
        scales = EqualizedDense(x.shape[-1], bias_value=1.0, name="style")(style)
        kernel = equalized_kernel(self, x.shape[-1], self.channels, 1)
        h = modulated_convolution(x.astype(self.dtype), kernel, scales, demodulate=False)
        bias = self.param("bias", nn.initializers.zeros, (self.channels,), jnp.float32)
        return h.astype(jnp.float32) + bias
