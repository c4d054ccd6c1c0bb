"""Painting around what is known: what is given of the image is held to its own path from noise to itself."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.arrays import noised
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


def hold_known(
    known: jax.Array, noise: jax.Array, mask: jax.Array, levels: jax.Array
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """For `samplers.sample`'s `after`: after every row the state is alpha known + sigma noise where the mask is 0.

    That is diffusers' way to paint with a network that was not trained for it. The start is the caller's.

    Args:
      known, noise: [B, h, w, C], one draw of noise for all rows.
      mask: [B, h, w, 1].
      levels: (alpha, sigma) of the state before each row [rows, 2]; the last row leads to `known` itself.
    """
    following = jnp.concatenate([levels[1:], jnp.array([[1.0, 0.0]], levels.dtype)])

    def held(x: jax.Array, row: jax.Array) -> jax.Array:
        return mask * x + (1 - mask) * noised(known, noise, *following[row])

    return held


def latent_mask(mask: jax.Array, factor: int) -> jax.Array:
    """The mask [B, h, w, 1] of latents: that of the image [B, H, W, 1] at the first pixel of each, as in diffusers."""
    return mask[:, ::factor, ::factor]
