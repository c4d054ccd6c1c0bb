"""Guidance: transforms of the function that a sampler calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.arrays import bcast
from diffusion_jax.diffusion.process import DiscreteProcess, Process

Predict = Callable[[jax.Array, jax.Array], jax.Array]
# An array [B, ...], or a tree of them.
Condition = Any
ConditionalPredict = Callable[[jax.Array, jax.Array, Condition], jax.Array]
# Shares of the image in x, alpha / sigma, up to this one are none.
_NOTHING = 1e-6


def conditional(predict: ConditionalPredict, condition: Condition) -> Predict:
    """predict(x, t, condition) with the condition [B, ...] fixed."""
    return lambda x, t: predict(x, t, condition)


def classifier_free(
    predict: ConditionalPredict,
    condition: Condition,
    null_condition: Condition,
    scale: jax.Array | float,
    channels: int | None = None,
    interval: tuple[float, float] | None = None,
    rescale: jax.Array | float = 0.0,
) -> Predict:
    """Classifier-free guidance (Ho and Salimans 2022, eq. 6): null + scale * (conditional - null).

    Both evaluations run as one batch of 2B. Predictions are linear in the output, so guiding the raw output guides the
    score whatever the network predicts.

    Args:
      predict: predict(x, t, condition).
      condition, null_condition: [B, ...], or trees of such arrays.
      scale: a scalar or [B]; 1 is no guidance, and is the paper's 1 + w.
      channels, interval, rescale: as in `extrapolate`.
    """
    both = jax.tree.map(lambda one, other: jnp.concatenate([one, other]), condition, null_condition)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        with_condition, without = jnp.split(predict(jnp.concatenate([x, x]), t, both), 2)
        return extrapolate(with_condition, without, scale, t, interval, rescale, channels)

    return guided


def autoguidance(
    predict: Predict,
    weak: Predict,
    scale: jax.Array | float,
    channels: int | None = None,
    interval: tuple[float, float] | None = None,
    rescale: jax.Array | float = 0.0,
) -> Predict:
    """Guidance by a worse version of the network itself (Karras et al. 2024b, eq. 3): weak + scale * (predict - weak).

    Both must be of the same prediction and for the same process. scale, channels, interval, rescale: as in
    `extrapolate`.
    """
    return lambda x, t: extrapolate(predict(x, t), weak(x, t), scale, t, interval, rescale, channels)


def extrapolate(
    good: jax.Array,
    bad: jax.Array,
    scale: jax.Array | float,
    t: jax.Array,
    interval: tuple[float, float] | None = None,
    rescale: jax.Array | float = 0.0,
    channels: int | None = None,
) -> jax.Array:
    """bad + scale * (good - bad), for outputs [B, ...].

    Args:
      scale: a scalar or [B]; 1 gives good.
      t: what the network was told, a scalar.
      interval: guidance acts where low <= t <= high, and elsewhere scale is 1 (Kynkaanniemi et al. 2024, eq. 3); in the
        units of t.
      rescale: phi of Lin et al. 2024, eq. 15 and 16: the share of the result that is rescaled to the standard deviation
        that each image of `good` has, against overexposure.
      channels: only so many of the output's are guided; the others, such as a learned variance, are those of `good`.
    """
    if channels is not None:
        moved = extrapolate(good[..., :channels], bad[..., :channels], scale, t, interval, rescale)
        return jnp.concatenate([moved, good[..., channels:]], -1)
    weight = jnp.asarray(scale, good.dtype)
    if interval is not None:
        low, high = interval
        weight = jnp.where((low <= t) & (t <= high), weight, 1)
    moved = bad + bcast(weight, good) * (good - bad)
    if isinstance(rescale, int | float) and rescale == 0:
        return moved
    axes = tuple(range(1, good.ndim))
    ratio = good.std(axes, keepdims=True) / moved.std(axes, keepdims=True)
    return moved * (rescale * ratio + (1 - rescale)).astype(moved.dtype)


def classifier(
    predict: Predict,
    log_probability: Predict,
    scale: jax.Array | float,
    process: Process,
    prediction: str,
    clip: float | None = None,
) -> Predict:
    """Classifier guidance (Dhariwal and Nichol 2021, algorithm 2): the score moves by scale grad_x log p(y | x, t).

    For every sampler. Ancestral sampling is guided by `classifier_gradient` in the paper (algorithm 1).

    Args:
      predict: the network, which predicts `prediction` on `process`.
      log_probability: log_probability(x, t) [B] of the wanted class of each image, by a classifier of noisy images.
      scale: a scalar or [B]; 0 is no guidance.
      clip: the unguided estimate of x_0 is clipped to this magnitude first, as in the released code; the sampler must
        not clip the guided one then.

    Raises:
      ValueError: `prediction` is a preconditioned one, whose network does not see x itself.
    """
    if prediction not in predictions.PREDICTIONS:
        raise ValueError(
            f"prediction is {prediction!r}; with a classifier it can be {', '.join(predictions.PREDICTIONS)}"
        )
    gradient = classifier_gradient(log_probability, scale)

    def guided(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha, sigma = _levels(process, t)
        on_x, on_output = predictions.denoised_coefficients(prediction, alpha, sigma)
        output = predict(x, t)
        # score = (alpha x_0 - x) / sigma^2. Where nothing is left of the image, x says nothing of its class.
        reach = jnp.where(alpha > _NOTHING * sigma, sigma**2 / alpha, 0)
        moved = bcast(reach, x) * gradient(x, t)
        if clip is not None:
            denoised = bcast(on_x, x) * x + bcast(on_output, x) * output
            moved = moved + jnp.clip(denoised, -clip, clip) - denoised
        return output + moved / bcast(on_output, x)

    return guided


def classifier_gradient(log_probability: Predict, scale: jax.Array | float) -> Predict:
    """scale times grad_x log p(y | x, t), [B, ...], with log_probability and scale as in `classifier`.

    As the `tilt` of ancestral sampling it moves the mean of every step by the variance times it (Dhariwal and Nichol
    2021, algorithm 1).
    """

    def gradient(x: jax.Array, t: jax.Array) -> jax.Array:
        return bcast(jnp.asarray(scale), x) * jax.grad(lambda y: log_probability(y, t).sum())(x)

    return gradient


def _levels(process: Process, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(alpha, sigma) at time t; between the timesteps of a chain, where `time_of` has them."""
    if not isinstance(process, DiscreteProcess):
        return process.alpha(t), process.sigma(t)
    log_ratios = jnp.asarray(np.log(np.minimum(process.ratios, 100 / _NOTHING)))
    ratio = jnp.exp(jnp.interp(t, jnp.arange(process.num_timesteps), log_ratios))
    alpha = process.alpha_at(ratio)
    return alpha, ratio * alpha
