"""Resampling with a finite filter: zeros between the pixels, a border, the filter, and every so many pixels."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def upfirdn(
    x: jax.Array, taps: Sequence[float], up: int = 1, down: int = 1, border: tuple[int, int] = (0, 0), gain: float = 1.0
) -> jax.Array:
    """Resamples [B, H, W, C] along height and width with the same separable filter, as StyleGAN2's layers do.

    After `up` - 1 zeros behind every pixel and `border` zeros before and after, a side of S pixels has S up + border[0]
    + border[1]; the filter is convolved with what it covers whole, and every `down`-th value is kept.

    Args:
      x: images.
      taps: the filter's weights, brought to the sum 1.
      up, down: factors from 1 up.
      border: zeros at either side.
      gain: factor of the result; up^2 keeps the brightness when zeros were inserted.
    """
    weights = np.asarray(taps, np.float64) * (gain**0.5 / np.sum(taps))
    for axis in (1, 2):
        x = _along(x, weights, up, down, border, axis)
    return x


def _along(x: jax.Array, weights: np.ndarray, up: int, down: int, border: tuple[int, int], axis: int) -> jax.Array:
    if up > 1:
        spread = jnp.pad(jnp.expand_dims(x, axis + 1), [(0, up - 1) if i == axis + 1 else (0, 0) for i in range(5)])
        x = spread.reshape(*x.shape[:axis], up * x.shape[axis], *x.shape[axis + 1 :])
    x = jnp.pad(x, [border if i == axis else (0, 0) for i in range(4)])
    # A sum of slices: depthwise convolutions are slow on every device, and their gradients slower.
    reach = x.shape[axis] - len(weights) + 1
    total = jnp.zeros((), x.dtype)
    for place, weight in enumerate(weights[::-1]):
        total = total + jnp.asarray(weight, x.dtype) * lax.slice_in_dim(x, place, place + reach, down, axis)
    return total
