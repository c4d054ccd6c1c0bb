"""Training objectives: time sampler x weighting x prediction."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion import variational
from diffusion_jax.diffusion.arrays import bcast, noised, standard_normal
from diffusion_jax.diffusion.process import DiscreteProcess, Process
from diffusion_jax.diffusion.time_sampler import LossSecondMoment
from diffusion_jax.diffusion.weighting import Weighting

Network = Callable[[jax.Array, jax.Array], jax.Array]

# How the variational bound of a network that also learns the variance enters the loss (Nichol and Dhariwal 2021).
#   none    the network does not learn a variance
#   hybrid  L_simple + T / 1000 L_vlb, which trains the variance alone (eq. 16; "RESCALED_MSE" in the released code)
#   hybrid_unscaled  L_simple + L_vlb ("MSE", of the released class-conditional network; the same where T is 1000)
#   vlb     T L_vlb, an estimate of the whole bound (eq. 4; "RESCALED_KL")
BOUNDS = ("none", "hybrid", "hybrid_unscaled", "vlb")


class Draws(NamedTuple):
    """What is drawn for a batch.

    Attributes:
      noise: [B, ...], standard normal.
      time: [B].
      quantile: [B], the share of the training distribution that is less noisy.
      importance: [B], what a loss counts for, so that the mean is that of times drawn as the process says.
    """

    noise: jax.Array
    time: jax.Array
    quantile: jax.Array
    importance: jax.Array


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weighted denoising error E[w(t) |target - network(x_t, t)|^2], the mean over all dimensions of an image.

    Example i draws its time and its noise from keys[i] alone, so a batch may be split in any way over devices, hosts
    and accumulation steps without changing what is learnt. The process says how often each time is drawn, unless a
    time sampler does, which also sees the losses of earlier batches.
    """

    process: Process
    prediction: str
    weighting: Weighting
    bound: str = "none"
    time_sampler: LossSecondMoment | None = None

    def __post_init__(self) -> None:
        half = jnp.full((), 0.5)
        predictions.interface(self.prediction, half, half, half)  # refuses an unknown name
        if self.bound not in BOUNDS:
            raise ValueError(f"bound is {self.bound!r}; it can be {', '.join(BOUNDS)}")
        if self.learned_variance:
            self._chain(f"bound {self.bound!r}")
        if self.time_sampler is not None:
            there, here = self._chain("a time sampler").num_timesteps, self.time_sampler.num_timesteps
            if there != here:
                raise ValueError(f"the time sampler is for {here} timesteps, but the process has {there}")

    def _chain(self, what: str = "this") -> DiscreteProcess:
        if not isinstance(self.process, DiscreteProcess):
            raise ValueError(f"{what} needs a discrete process, such as linear or cosine")
        return self.process

    @property
    def learned_variance(self) -> bool:
        """Whether the network's output has twice the image's channels, the second half for the variance."""
        return self.bound != "none"

    def init_state(self) -> Any:
        """What the time sampler remembers before the first batch."""
        return () if self.time_sampler is None else self.time_sampler.init()

    def draw(self, keys: jax.Array, x0: jax.Array, state: Any = ()) -> Draws:
        """Times and noise for images [B, ...] from keys [B], with what the time sampler remembers."""
        quantile, noise = jax.vmap(quantile_and_noise, (0, None, None))(keys, x0.shape[1:], x0.dtype)
        if self.time_sampler is None:
            return Draws(noise, self.process.time_at(quantile), quantile, jnp.ones_like(quantile))
        uniforms = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 1), (2,)))(keys)
        time, importance = self.time_sampler.draw(state, uniforms)
        return Draws(noise, time, (time + 0.5) / self.time_sampler.num_timesteps, importance)

    def update_state(self, state: Any, time: jax.Array, loss: jax.Array) -> Any:
        """The time sampler's memory with the losses [B] of a batch at times [B]."""
        return state if self.time_sampler is None else self.time_sampler.update(state, time, loss)

    def at(
        self,
        network: Network,
        x0: jax.Array,
        noise: jax.Array,
        t: jax.Array,
        log_variance: Callable[[jax.Array], jax.Array] | None = None,
    ) -> jax.Array:
        """The losses [B] at given times [B] and unit noise [B, ...].

        Args:
          network: network(x, t) -> raw output [B, ...], at the input and the timestep that the prediction asks for.
          x0, noise: [B, ...].
          t: [B].
          log_variance: u(timestep) -> [B], learnt beside the network, which makes a loss L into exp(-u) L + u: noise
            levels then weigh alike, whatever their losses are (Karras et al. 2024, eq. 21).
        """
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        call = predictions.interface(self.prediction, t, alpha, sigma)
        x_t = noised(x0, noise, bcast(alpha, x0), bcast(sigma, x0))
        output = network(bcast(call.input_scale, x0) * x_t, call.timestep).astype(
            jnp.promote_types(x0.dtype, jnp.float32)
        )
        loss = self._loss(output, x0, x_t, noise, t, call)
        if log_variance is None:
            return loss
        u = log_variance(call.timestep)
        return jnp.exp(-u) * loss + u

    def _loss(
        self,
        output: jax.Array,
        x0: jax.Array,
        x_t: jax.Array,
        noise: jax.Array,
        t: jax.Array,
        call: predictions.Interface,
    ) -> jax.Array:
        if not self.learned_variance:
            return self._denoising_loss(output, x0, x_t, noise, t, call)
        mean_output, fraction = jnp.split(output, 2, axis=-1)
        if self.bound == "vlb":
            return self._bound(mean_output, fraction, x0, x_t, t) * self._chain().num_timesteps
        # The bound teaches the variance only: its gradient through the mean would undo L_simple's weighting.
        bound = self._bound(jax.lax.stop_gradient(mean_output), fraction, x0, x_t, t)
        simple = self._denoising_loss(mean_output, x0, x_t, noise, t, call)
        return simple + bound * (1 if self.bound == "hybrid_unscaled" else self._chain().num_timesteps / 1000)

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


def quantile_and_noise(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """What is drawn for one example: the quantile of its time, uniform in [0, 1), and unit noise of this shape."""
    time_key, noise_key = jax.random.split(key)
    return jax.random.uniform(time_key), standard_normal(noise_key, shape, dtype)
