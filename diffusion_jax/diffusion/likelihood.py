"""Likelihoods of continuous models by the probability-flow ODE (Song et al. 2021, section 4.3 and appendix D.2)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def log_likelihood(
    denoise: Denoise,
    x0: jax.Array,
    key: jax.Array,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    num_steps: int = 200,
    num_probes: int = 1,
) -> jax.Array:
    """log p(x0) [B] in nats, the divergence estimated with random signs (Hutchinson's estimator).

    The flow dx/dsigma = (x - denoise(x, sigma)) / sigma (Karras et al. 2022, eq. 1) carries x0 at sigma_min to noise at
    sigma_max, where the density is N(0, sigma_max^2) but for a share of order (data / sigma_max)^2. It is integrated in
    log sigma by the classical Runge-Kutta method, four evaluations a step, with one draw of the probes for the whole
    path, so that the estimate is unbiased.

    Args:
      denoise: (x [B, ...], sigma scalar) -> estimate of x_0, for any noise level.
      x0: data with noise of level sigma_min on it, or dequantised, [B, ...].
      key: draws the probes.
      sigma_min, sigma_max: ends of the path.
      num_steps: of the integration.
      num_probes: averaged over for a smaller variance.
    """
    axes = tuple(range(1, x0.ndim))
    # Drawn in one dimension, as in `arrays.standard_normal`: the same numbers, compiled in a fraction of the time.
    probes = jax.random.rademacher(key, (num_probes * x0.size,), x0.dtype).reshape(num_probes, *x0.shape)

    def velocity(x: jax.Array, log_sigma: jax.Array) -> jax.Array:
        return x - denoise(x, jnp.exp(log_sigma))

    def slope(x: jax.Array, log_sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        """dx / dlog sigma and d(-log density) / dlog sigma along the flow."""
        value, pullback = jax.vjp(lambda x: velocity(x, log_sigma), x)
        divergence = jax.vmap(lambda probe: jnp.sum(pullback(probe)[0] * probe, axis=axes))(probes).mean(0)
        return value, divergence

    step = float(np.log(sigma_max / sigma_min)) / num_steps

    def advance(carry: tuple[jax.Array, jax.Array], i: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        x, change = carry
        u = jnp.log(jnp.asarray(sigma_min, x.dtype)) + i * step
        k1, d1 = slope(x, u)
        k2, d2 = slope(x + step / 2 * k1, u + step / 2)
        k3, d3 = slope(x + step / 2 * k2, u + step / 2)
        k4, d4 = slope(x + step * k3, u + step)
        x = x + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return (x, change + step / 6 * (d1 + 2 * d2 + 2 * d3 + d4)), None

    start = (x0, jnp.zeros(len(x0), x0.dtype))
    (x, change), _ = jax.lax.scan(advance, start, jnp.arange(num_steps))
    prior = -0.5 * jnp.sum(jnp.square(x / sigma_max) + np.log(2 * np.pi * sigma_max**2), axis=axes)
    return prior + change


def to_bits_per_dimension(log_likelihood: jax.Array, num_dimensions: int) -> jax.Array:
    """Bits per dimension of uint8 images whose density, dequantised with uniform noise, is over [-1, 1].

    One of the 256 values is 1 / 127.5 wide there (Theis et al. 2016, section 3.1).
    """
    return -log_likelihood / (num_dimensions * np.log(2)) + np.log2(127.5)
