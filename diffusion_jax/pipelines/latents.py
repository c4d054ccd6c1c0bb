"""Latents: from and to images, between one another."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.diffusion.arrays import standard_normal


def encode(autoencoder: nn.Module, params: Any, images: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] in [-1, 1] to the latents that the network works on, by the mean of their Gaussian."""
    encoded: Any = autoencoder.apply({"params": params}, images, method="encode")
    mean = encoded[0] if isinstance(encoded, tuple) else encoded
    return (mean - shift(autoencoder)) * scale(autoencoder)


def decode(autoencoder: nn.Module, params: Any, latents: jax.Array) -> jax.Array:
    """Latents to images [B, H, W, 3], about in [-1, 1]."""
    plain = latents / scale(autoencoder) + shift(autoencoder)
    return autoencoder.apply({"params": params}, plain, method="decode")  # pyright: ignore[reportReturnType]


def scale(autoencoder: Any) -> Any:
    """By what latents less their shift are multiplied: a number, or one for each channel."""
    std = getattr(autoencoder, "latents_std", None)
    return autoencoder.scaling_factor if std is None else autoencoder.scaling_factor / np.array(std, np.float32)


def shift(autoencoder: Any) -> Any:
    """What is taken from latents: a number, or one for each channel."""
    mean = getattr(autoencoder, "latents_mean", None)
    return autoencoder.shift_factor or 0.0 if mean is None else np.array(mean, np.float32)


def slerp(start: jax.Array, end: jax.Array, fraction: jax.Array | float) -> jax.Array:
    """Spherical interpolation of latents [B, ...], image by image; fraction is a scalar or [B].

    Straight lines between normal vectors pass where no noise is (White 2016, arXiv:1609.04468); arcs keep the length.
    """
    axes = tuple(range(1, start.ndim))
    share = jnp.reshape(jnp.asarray(fraction, start.dtype), (-1,) + (1,) * len(axes))

    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))

    cosine = jnp.sum(start * end, axis=axes, keepdims=True) / jnp.maximum(norm(start) * norm(end), 1e-12)
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    sine = jnp.sin(angle)
    arc = sine > 1e-4  # nearly parallel: the line is the arc
    safe = jnp.where(arc, sine, 1)
    one = jnp.where(arc, jnp.sin((1 - share) * angle) / safe, 1 - share)
    other = jnp.where(arc, jnp.sin(share * angle) / safe, share)
    return one * start + other * end


def interpolate(start: jax.Array, end: jax.Array, count: int) -> jax.Array:
    """`count` latents [count, H, W, C] from one latent to another, ends included, along the arc.

    The ends are [H, W, C] or [1, H, W, C], as `invert` gives one for an image. Raises ValueError for any other shape.
    """
    start, end = (x[0] if x.ndim == 4 and len(x) == 1 else x for x in (start, end))
    if start.ndim != 3 or start.shape != end.shape:
        raise ValueError(f"latents have shapes {start.shape} and {end.shape}; give one latent [H, W, C] for each end")
    fractions = jnp.linspace(0.0, 1.0, count)
    starts, ends = (jnp.broadcast_to(x, (count, *x.shape)) for x in (start, end))
    return slerp(starts, ends, fractions)


def vary(latents: jax.Array, key: jax.Array, amount: float) -> jax.Array:
    """Variations of unit-normal latents [B, ...]: image i goes `amount` of the arc towards noise of fold_in(key, i)."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(latents)))
    other = jax.vmap(lambda k: standard_normal(k, latents.shape[1:], latents.dtype))(keys)
    return slerp(latents, other, amount)
