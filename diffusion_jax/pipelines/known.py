"""Painting around what is known: the estimate of x_0 is replaced where the image is given."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.samplers import Sampler
from diffusion_jax.diffusion.samplers.core import Predict


def row_of(sampler: Sampler, t: jax.Array) -> jax.Array:
    """The first row of the sampler's table at which the network is told t."""
    return jnp.argmin(jnp.abs(jnp.asarray(sampler.table.timestep, jnp.float32) - t))


def replace_known(sampler: Sampler, predict: Predict, known: jax.Array, mask: jax.Array) -> Predict:
    """predict, changed so that its estimate of x_0 is `known` [B, H, W, C] where mask [B, H, W, 1] is 0.

    The state of such a pixel then follows known's own path from its noise to known itself: for a deterministic sampler
    it is alpha known + sigma noise at every step, with the noise it began with, and for an ancestral one a sample of
    q(x_t | x_0 = known). That is the blending of Avrahami et al. 2022 and the known part of RePaint (Lugmayr et al.
    2022, eq. 8), for any solver and any prediction.
    """
    denoise = jnp.asarray(sampler.table.denoise, known.dtype)
    input_scale = jnp.asarray(sampler.table.input_scale, known.dtype)

    def blended(x: jax.Array, t: jax.Array) -> jax.Array:
        row = row_of(sampler, t)
        on_x, on_output = denoise[row]
        wanted = (known - on_x * x / input_scale[row]) / on_output
        return mask * predict(x, t) + (1 - mask) * wanted

    return blended


def covering(mask: jax.Array, factor: int) -> jax.Array:
    """The mask of the latents [B, h, w, 1]: 1 where any pixel is to be painted."""
    batch, height, width, _ = mask.shape
    return mask.reshape(batch, height // factor, factor, width // factor, factor, 1).max(axis=(2, 4))
