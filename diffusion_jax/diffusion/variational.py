"""The variational bound of a discrete chain: its terms, and likelihoods in bits per dimension.

Ho et al. 2020, section 2 and 3.3; Nichol and Dhariwal 2021, section 3.1 and appendix A.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.arrays import bcast, noised, standard_normal
from diffusion_jax.diffusion.process import DiscreteProcess

# Half the distance between neighbouring uint8 values on [-1, 1].
_HALF_BIN = 1 / 255


def respaced(process: DiscreteProcess, timesteps: np.ndarray) -> DiscreteProcess:
    """The chain that visits only `timesteps` (increasing) of a chain: beta = 1 - alpha_bar_t / alpha_bar_s."""
    alphas_cumprod = process.alphas_cumprod[timesteps]
    return DiscreteProcess(1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]))


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """q(x_{t-1} | x_t, x_0) of a chain (Ho et al. 2020, eq. 6-7), tables float64 [T]."""

    process: DiscreteProcess

    @property
    def _previous(self) -> np.ndarray:
        return np.append(1.0, self.process.alphas_cumprod[:-1])

    @property
    def log_variance(self) -> np.ndarray:
        """log of the posterior variance; that of t = 0, which is 0, is replaced by its neighbour's."""
        variance = self.process.betas * (1 - self._previous) / (1 - self.process.alphas_cumprod)
        return np.log(np.append(variance[1] if len(variance) > 1 else self.process.betas[0], variance[1:]))

    def mean(self, x0: jax.Array, x_t: jax.Array, t: jax.Array) -> jax.Array:
        """Mean of the posterior, x0 and x_t [B, ...], t [B]."""
        process, previous = self.process, self._previous
        on_x0 = np.sqrt(previous) * process.betas / (1 - process.alphas_cumprod)
        on_x_t = np.sqrt(1 - process.betas) * (1 - previous) / (1 - process.alphas_cumprod)
        return bcast(jnp.asarray(on_x0)[t], x0) * x0 + bcast(jnp.asarray(on_x_t)[t], x_t) * x_t

    def learned_log_variance(self, fraction: jax.Array, t: jax.Array) -> jax.Array:
        """Between log of the posterior variance at fraction -1 and log beta at 1 (Nichol and Dhariwal 2021, eq. 15)."""
        low = bcast(jnp.asarray(self.log_variance)[t], fraction)
        high = bcast(jnp.asarray(np.log(self.process.betas))[t], fraction)
        share = (fraction + 1) / 2
        return share * high + (1 - share) * low

    def fixed_log_variance(self, variance: str, t: jax.Array) -> jax.Array:
        """log variance [B] of "fixed_small" or "fixed_large", whose first entry is the posterior's, as in DDPM."""
        small = self.log_variance
        tables = {"fixed_small": small, "fixed_large": np.append(small[0], np.log(self.process.betas[1:]))}
        return jnp.asarray(tables[variance])[t]


def gaussian_kl(mean1: jax.Array, log_variance1: jax.Array, mean2: jax.Array, log_variance2: jax.Array) -> jax.Array:
    """KL(N(mean1, exp log_variance1) || N(mean2, exp log_variance2)) elementwise, in nats."""
    difference = log_variance1 - log_variance2
    return 0.5 * (jnp.exp(difference) - 1 - difference + jnp.square(mean1 - mean2) * jnp.exp(-log_variance2))


def decoder_log_likelihood(x0: jax.Array, mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """log probability of the uint8 bin around x0 in [-1, 1] (Ho et al. 2020, eq. 13), elementwise, in nats.

    The outermost bins reach to infinity. Published likelihoods use tanh's approximation of the normal distribution
    function and a smallest probability of 1e-12, so they are used here.
    """
    scale = jnp.exp(-0.5 * log_variance)
    upper, lower = _normal_cdf((x0 - mean + _HALF_BIN) * scale), _normal_cdf((x0 - mean - _HALF_BIN) * scale)
    probability = jnp.where(x0 < -0.999, upper, jnp.where(x0 > 0.999, 1 - lower, upper - lower))
    return jnp.log(jnp.maximum(probability, 1e-12))


def _normal_cdf(x: jax.Array) -> jax.Array:
    """Page 1977; at most 3e-4 from the truth."""
    return 0.5 * (1 + jnp.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def bound_term(
    posterior: Posterior,
    x0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    denoised: jax.Array,
    log_variance: jax.Array,
) -> jax.Array:
    """One term of the bound [B], bits per dimension: L_{t-1} for t > 0, the decoder's L_0 for t = 0.

    denoised: the model's estimate of x0; log_variance: of the model's p(x_{t-1} | x_t), broadcastable to x0.
    """
    axes = tuple(range(1, x0.ndim))
    model_mean = posterior.mean(denoised, x_t, t)
    true_log_variance = bcast(jnp.asarray(posterior.log_variance)[t], x0)
    kl = gaussian_kl(posterior.mean(x0, x_t, t), true_log_variance, model_mean, log_variance)
    decoder = -decoder_log_likelihood(x0, model_mean, log_variance)
    return jnp.where(t == 0, decoder.mean(axes), kl.mean(axes)) / np.log(2)


class BitsPerDimension(NamedTuple):
    """The bound on -log2 p(x0) per dimension: total [B] = prior [B] + sum of terms [B, T]; and errors [B, T]."""

    total: jax.Array
    prior: jax.Array
    terms: jax.Array
    denoised_error: jax.Array
    noise_error: jax.Array


def bits_per_dimension(
    process: DiscreteProcess,
    prediction: str,
    network: Callable[[jax.Array, jax.Array], jax.Array],
    x0: jax.Array,
    *,
    timesteps: np.ndarray | None = None,
    variance: str = "fixed_small",
    clip: float | None = 1.0,
    key: jax.Array | None = None,
    noise: jax.Array | None = None,
) -> BitsPerDimension:
    """Every term of the bound for images x0 [B, ...] in [-1, 1], one draw of noise a term.

    Args:
      process, prediction: what the network was trained for.
      network: (x_t, t [B]) -> raw output, with twice the channels for variance "learned_range".
      x0: images that were uint8, x / 127.5 - 1.
      timesteps: evaluates the chain of these (increasing) only; None: all.
      variance: "fixed_small", "fixed_large" or "learned_range".
      clip: bounds the estimate of x0; None leaves it.
      key: draws the noise; or noise: unit normals [T, *x0.shape], the first for the noisiest timestep, as a sampler
        would use them.

    Returns:
      Terms in the order of increasing t.
    """
    if key is None and noise is None:
        raise ValueError("the bound is estimated with noise: give a key, or the noise itself")
    base_key = jax.random.key(0) if key is None else key  # not used where the noise is given
    visited = np.arange(process.num_timesteps) if timesteps is None else np.asarray(timesteps)
    chain = respaced(process, visited)
    posterior = Posterior(chain)
    axes = tuple(range(1, x0.ndim))
    count = len(visited)

    def term(_: None, i: jax.Array) -> tuple[None, tuple[jax.Array, jax.Array, jax.Array]]:
        t = jnp.full(len(x0), i)
        if noise is not None:
            unit = noise[count - 1 - i]
        else:
            unit = standard_normal(jax.random.fold_in(base_key, i), x0.shape, x0.dtype)
        alpha, sigma = bcast(chain.alpha(t), x0), bcast(chain.sigma(t), x0)
        x_t = noised(x0, unit, alpha, sigma)
        output = network(x_t, jnp.asarray(visited)[t])
        if variance == "learned_range":
            output, fraction = jnp.split(output, 2, axis=-1)
            log_variance = posterior.learned_log_variance(fraction, t)
        else:
            log_variance = bcast(posterior.fixed_log_variance(variance, t), x0)
        denoised = predictions.to_denoised(prediction, output, x_t, alpha, sigma)
        denoised = denoised if clip is None else jnp.clip(denoised, -clip, clip)
        implied_noise = (x_t - alpha * denoised) / sigma
        return None, (
            bound_term(posterior, x0, x_t, t, denoised, log_variance),
            jnp.square(denoised - x0).mean(axes),
            jnp.square(implied_noise - unit).mean(axes),
        )

    _, (terms, denoised_error, noise_error) = jax.lax.scan(term, None, jnp.arange(count))
    last = jnp.full(len(x0), count - 1)
    mean = bcast(chain.alpha(last), x0) * x0
    prior = gaussian_kl(mean, 2 * jnp.log(bcast(chain.sigma(last), x0)), jnp.zeros(()), jnp.zeros(()))
    prior = prior.mean(axes) / np.log(2)
    return BitsPerDimension(terms.sum(0) + prior, prior, terms.T, denoised_error.T, noise_error.T)
