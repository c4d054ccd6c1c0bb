"""Invertible layers over [B, H, W, C], each with the logarithm of its Jacobian's determinant.

Called forwards they return (y, log |det dy/dx| [B]), and with reverse=True the x that this y came from and the same
logarithm with the other sign. Parameters are float32; the computation has the precision of x.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.scipy.linalg import solve_triangular

Transformed = tuple[jax.Array, jax.Array]
CONVOLUTIONS = ("lu", "plain")
# A channel that hardly varies in the first batch is not scaled up to vary as the others.
_LEAST_DEVIATION = 1e-3


def squeeze(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H/2, W/2, 4 C]: each 2x2 square becomes the channels of one pixel (Dinh et al. 2017, 3.6)."""
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return squares.transpose(0, 1, 3, 5, 2, 4).reshape(batch, height // 2, width // 2, 4 * channels)


def unsqueeze(x: jax.Array) -> jax.Array:
    """[B, H, W, 4 C] -> [B, 2 H, 2 W, C], the inverse of `squeeze`."""
    batch, height, width, channels = x.shape
    squares = x.reshape(batch, height, width, channels // 4, 2, 2)
    return squares.transpose(0, 1, 4, 2, 5, 3).reshape(batch, 2 * height, 2 * width, channels // 4)


class Logit(nn.Module):
    """logit(margin + (1 - 2 margin) (x + 1) / 2) of values in [-1, 1] (Dinh et al. 2017, section 4.1).

    What the flow makes of noise then stays between the darkest and the brightest value, but for the margin on both
    sides, which keeps the logit finite.
    """

    margin: float

    @nn.compact
    def __call__(self, x: jax.Array, class_labels: jax.Array | None = None, reverse: bool = False) -> Transformed:
        del class_labels
        axes = tuple(range(1, x.ndim))
        half = 0.5 - self.margin
        # logit' = 1 / (p (1 - p))
        if reverse:
            log_det = nn.log_sigmoid(x) + nn.log_sigmoid(-x) - jnp.log(half)
            return (nn.sigmoid(x) - 0.5) / half, log_det.sum(axes)
        share = 0.5 + half * x
        return jnp.log(share) - jnp.log1p(-share), (jnp.log(half) - jnp.log(share * (1 - share))).sum(axes)


class ActNorm(nn.Module):
    """A shift and a scale that start so that the first batch has mean 0 and variance 1 (Kingma and Dhariwal 2018, 3.1).

    Fields: by_value, whether every value of an image has its own and not every channel.
    """

    by_value: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, class_labels: jax.Array | None = None, reverse: bool = False) -> Transformed:
        del class_labels
        axes = (0,) if self.by_value else (0, 1, 2)

        def log_scale_of_batch(_: jax.Array) -> jax.Array:
            return -jnp.log(jnp.maximum(x.std(axes), _LEAST_DEVIATION))

        shift = self.param("shift", lambda _: -x.mean(axes))
        log_scale = self.param("log_scale", log_scale_of_batch)
        places = 1 if self.by_value else x.shape[1] * x.shape[2]
        log_det = jnp.broadcast_to(places * log_scale.sum(), x.shape[:1])
        if reverse:
            return x * jnp.exp(-log_scale) - shift, -log_det
        return (x + shift) * jnp.exp(log_scale), log_det


class InvertibleConv(nn.Module):
    """A 1x1 convolution with as many channels out as in, at first a random rotation (Kingma and Dhariwal 2018, 3.2).

    "plain" keeps the kernel whole and takes its determinant. "lu" keeps the factors of kernel = P L (U + diag(s)), eq.
    10, whose determinant is a sum of log |s|. P and the signs of s do not change in training, so they belong to the
    layer and not to its parameters: the rotation is drawn from `seed`, whatever the key of the parameters.

    Fields: factors, "lu" or "plain"; seed of the rotation of "lu".
    """

    factors: str = "lu"
    seed: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, class_labels: jax.Array | None = None, reverse: bool = False) -> Transformed:
        del class_labels
        channels = x.shape[-1]
        if self.factors == "lu":
            kernel, inverse, log_abs_det = self._factored(channels)
        else:
            kernel = self.param("kernel", nn.initializers.orthogonal(), (channels, channels), jnp.float32)
            inverse, log_abs_det = functools.partial(jnp.linalg.inv, kernel), jnp.linalg.slogdet(kernel)[1]
        log_det = jnp.broadcast_to(x.shape[1] * x.shape[2] * log_abs_det, x.shape[:1]).astype(x.dtype)
        if reverse:
            return x @ inverse(), -log_det
        return x @ kernel, log_det

    def _factored(self, channels: int):
        permutation, lower, upper, diagonal = rotation_factors(self.seed, channels)
        strict = np.tril(np.ones((channels, channels), bool), -1)
        low = self.param("lower", lambda _: jnp.asarray(lower, jnp.float32))
        up = self.param("upper", lambda _: jnp.asarray(upper, jnp.float32))
        log_s = self.param("log_scale", lambda _: jnp.asarray(np.log(np.abs(diagonal)), jnp.float32))
        one = jnp.eye(channels, dtype=low.dtype)
        low = jnp.where(strict, low, one)
        up = jnp.where(strict.T, up, 0) + one * (jnp.sign(jnp.asarray(diagonal, low.dtype)) * jnp.exp(log_s))
        # (P L)[i] is the row of L that partial pivoting exchanged for it.
        kernel = low[np.argsort(permutation)] @ up

        def inverse() -> jax.Array:
            inner = solve_triangular(low, one, lower=True, unit_diagonal=True)
            return solve_triangular(up, inner, lower=False)[:, np.argsort(permutation)]

        return kernel, inverse, log_s.sum()


def rotation_factors(seed: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A random rotation Q [size, size] by its factors, float64: Q[permutation] = L (U + diag(s)).

    Returns (permutation, strictly lower L - I, strictly upper U, s).
    """
    square, triangle = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    rows = square * np.sign(np.diag(triangle))  # so that every rotation is as likely (Mezzadri 2007)
    permutation = np.arange(size)
    for column in range(size - 1):
        pivot = column + int(np.argmax(np.abs(rows[column:, column])))
        rows[[column, pivot]], permutation[[column, pivot]] = rows[[pivot, column]], permutation[[pivot, column]]
        rows[column + 1 :, column] /= rows[column, column]
        rows[column + 1 :, column + 1 :] -= np.outer(rows[column + 1 :, column], rows[column, column + 1 :])
    return permutation, np.tril(rows, -1), np.triu(rows, 1), np.diag(rows).copy()
