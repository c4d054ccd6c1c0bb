"""Training objectives: time sampler x weighting x prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion import variational
from diffusion_jax.diffusion.arrays import bcast
from diffusion_jax.diffusion.process import DiscreteProcess, Process
from diffusion_jax.diffusion.weighting import Weighting

Network = Callable[[jax.Array, jax.Array], jax.Array]

# How the variational bound of a network that also learns the variance enters the loss (Nichol and Dhariwal 2021).
#   none    the network does not learn a variance
#   hybrid  L_simple + T / 1000 L_vlb, which trains the variance alone (eq. 16; "RESCALED_MSE" in the released code)
#   vlb     T L_vlb, an estimate of the whole bound (eq. 4; "RESCALED_KL")
BOUNDS = ("none", "hybrid", "vlb")


@dataclasses.dataclass(frozen=True)
class LossTerms:
    """What one batch gave: per-example losses [B] and the quantiles [B] of the noise levels they were drawn at."""

    loss: jax.Array
    quantile: jax.Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weighted denoising error E[w(t) |target - network(x_t, t)|^2], the mean over all dimensions of an image.

    Example i draws its time and its noise from keys[i] alone, so a batch may be split in any way over devices, hosts
    and accumulation steps without changing what is learnt. The process says how often each time is drawn.
    """

    process: Process
    prediction: str
    weighting: Weighting
    bound: str = "none"

    def __post_init__(self) -> None:
        half = jnp.full((), 0.5)
        predictions.interface(self.prediction, half, half, half)  # refuses an unknown name
        if self.bound not in BOUNDS:
            raise ValueError(f"bound is {self.bound!r}; it can be {', '.join(BOUNDS)}")
        if self.learned_variance:
            self._chain()

    def _chain(self) -> DiscreteProcess:
        if not isinstance(self.process, DiscreteProcess):
            raise ValueError(f"bound {self.bound!r} needs a discrete process, such as linear or cosine")
        return self.process

    @property
    def learned_variance(self) -> bool:
        """Whether the network's output has twice the image's channels, the second half for the variance."""
        return self.bound != "none"

    def __call__(self, network: Network, x0: jax.Array, keys: jax.Array) -> LossTerms:
        """network(x, t) -> raw output [B, ...]; x0 float [B, ...]; keys: [B] PRNG keys."""
        quantile, noise = jax.vmap(_draw, (0, None, None))(keys, x0.shape[1:], x0.dtype)
        return LossTerms(self.at(network, x0, noise, self.process.time_at(quantile)), quantile)

    def at(self, network: Network, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """The losses [B] at given times [B] and unit noise [B, ...]."""
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        call = predictions.interface(self.prediction, t, alpha, sigma)
        x_t = bcast(alpha, x0) * x0 + bcast(sigma, x0) * noise
        output = network(bcast(call.input_scale, x0) * x_t, call.timestep).astype(
            jnp.promote_types(x0.dtype, jnp.float32)
        )
        if not self.learned_variance:
            return self._denoising_loss(output, x0, x_t, noise, t, call)
        mean_output, fraction = jnp.split(output, 2, axis=-1)
        if self.bound == "vlb":
            return self._bound(mean_output, fraction, x0, x_t, t) * self._chain().num_timesteps
        # The bound teaches the variance only: its gradient through the mean would undo L_simple's weighting.
        bound = self._bound(jax.lax.stop_gradient(mean_output), fraction, x0, x_t, t)
        simple = self._denoising_loss(mean_output, x0, x_t, noise, t, call)
        return simple + bound * self._chain().num_timesteps / 1000

    def _denoising_loss(
        self,
        output: jax.Array,
        x0: jax.Array,
        x_t: jax.Array,
        noise: jax.Array,
        t: jax.Array,
        call: predictions.Interface,
    ) -> jax.Array:
        if self.prediction in predictions.PREDICTIONS:
            alpha, sigma = bcast(self.process.alpha(t), x0), bcast(self.process.sigma(t), x0)
            target = predictions.target(self.prediction, x0, noise, alpha, sigma)
        else:
            target = (x0 - bcast(call.on_x, x0) * x_t) / bcast(call.on_output, x0)
        error = jnp.square(output - target)
        mean = jnp.mean(error, axis=tuple(range(1, error.ndim)))
        return mean * self.weighting(self.process.log_snr(t), call.on_output)

    def _bound(
        self, mean_output: jax.Array, fraction: jax.Array, x0: jax.Array, x_t: jax.Array, t: jax.Array
    ) -> jax.Array:
        alpha, sigma = bcast(self.process.alpha(t), x0), bcast(self.process.sigma(t), x0)
        denoised = predictions.to_denoised(self.prediction, mean_output, x_t, alpha, sigma)
        posterior = variational.Posterior(self._chain())
        return variational.bound_term(posterior, x0, x_t, t, denoised, posterior.learned_log_variance(fraction, t))


def _draw(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    time_key, noise_key = jax.random.split(key)
    return jax.random.uniform(time_key), jax.random.normal(noise_key, shape, dtype)
