"""Training objectives: time sampler x weighting x prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.process import Process, bcast

Network = Callable[[jax.Array, jax.Array], jax.Array]


class Weighting(Protocol):
    """Weight of the squared error in the network's own output, from log SNR [B] and the prediction's name."""

    def __call__(self, log_snr: jax.Array, prediction: str) -> jax.Array: ...


def simple() -> Weighting:
    """L_simple (Ho et al. 2020, eq. 14): every timestep counts the same."""
    return lambda log_snr, prediction: jnp.ones_like(log_snr)


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the error in x_0 (Hang et al. 2023, eq. 7), translated to the prediction's own error."""

    def weight(log_snr: jax.Array, prediction: str) -> jax.Array:
        snr = jnp.exp(log_snr)
        return jnp.minimum(snr, gamma) * _denoised_per_output_error(log_snr, prediction)

    return weight


def p2(k: float = 1.0, gamma: float = 1.0) -> Weighting:
    """1 / (k + SNR)^gamma on the error in epsilon (Choi et al. 2022, eq. 8), translated likewise."""

    def weight(log_snr: jax.Array, prediction: str) -> jax.Array:
        snr = jnp.exp(log_snr)
        return snr / (k + snr) ** gamma * _denoised_per_output_error(log_snr, prediction)

    return weight


def _denoised_per_output_error(log_snr: jax.Array, prediction: str) -> jax.Array:
    """|error in x_0|^2 / |error in the output|^2 of a variance-preserving process."""
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))
    return jnp.square(predictions.denoised_coefficients(prediction, alpha, sigma)[1])


WEIGHTINGS: dict[str, Callable[..., Weighting]] = {"simple": simple, "min_snr": min_snr, "p2": p2}


@dataclasses.dataclass(frozen=True)
class LossTerms:
    """What one batch gave: per-example losses [B], and the quantile [B] of the noise level that each was drawn at."""

    loss: jax.Array
    quantile: jax.Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weighted denoising error E[w(t) |target - network(x_t, t)|^2], the mean over all dimensions of an image.

    Example i draws its time and its noise from keys[i] alone, so a batch may be split in any way over devices, hosts
    and accumulation steps without changing what is learnt.
    """

    process: Process
    prediction: str
    weighting: Weighting

    def __post_init__(self) -> None:
        if self.prediction not in predictions.PREDICTIONS:
            raise ValueError(f"prediction is {self.prediction!r}; it can be {', '.join(predictions.PREDICTIONS)}")

    def __call__(self, network: Network, x0: jax.Array, keys: jax.Array) -> LossTerms:
        """network(x_t, t) -> raw output [B, ...]; x0 float [B, ...]; keys: [B] PRNG keys."""
        quantile, noise = jax.vmap(_draw, (0, None, None))(keys, x0.shape[1:], x0.dtype)
        t = self.process.time_at(quantile)
        alpha, sigma = bcast(self.process.alpha(t), x0), bcast(self.process.sigma(t), x0)
        output = network(alpha * x0 + sigma * noise, t)
        error = output.astype(jnp.float32) - predictions.target(self.prediction, x0, noise, alpha, sigma)
        loss = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
        return LossTerms(loss * self.weighting(self.process.log_snr(t), self.prediction), quantile)


def _draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    time_key, noise_key = jax.random.split(key)
    return jax.random.uniform(time_key), jax.random.normal(noise_key, shape, dtype)
