"""Weights of the denoising error over noise levels.

A weighting is a function (log_snr, on_output) -> weight of the squared error in the network's own output, both [B].
Papers state weights for the error in x_0 or in epsilon; on_output^2 is the first in units of the output's, since
x_0 = on_x x + on_output output.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from diffusion_jax.options import described

Weighting = Callable[[jax.Array, jax.Array], jax.Array]


def simple() -> Weighting:
    """L_simple (Ho et al. 2020, eq. 14): the plain error of whatever the network predicts."""
    return lambda log_snr, on_output: jnp.ones_like(log_snr)


def snr() -> Weighting:
    """alpha^2 / sigma^2 on the error in x_0, which is 1 on the error in epsilon (Song et al. 2021, eq. 7)."""
    return lambda log_snr, on_output: jnp.exp(log_snr) * on_output**2


@described(
    gamma="bound of the signal-to-noise ratio",
)
def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma) on the error in x_0 (Hang et al. 2023, eq. 7)."""
    if not gamma > 0:
        raise ValueError(f"gamma is {gamma}; it must be above 0")
    return lambda log_snr, on_output: jnp.minimum(jnp.exp(log_snr), gamma) * on_output**2


@described(
    k="added to the signal-to-noise ratio",
    gamma="exponent of the weight; 0: no weighting",
)
def p2(k: float = 1.0, gamma: float = 1.0) -> Weighting:
    """1 / (k + SNR)^gamma on the error in epsilon (Choi et al. 2022, eq. 8)."""
    if not (k > 0 and gamma >= 0):
        raise ValueError(f"k is {k} and gamma {gamma}; k must be above 0 and gamma at least 0")

    def weight(log_snr: jax.Array, on_output: jax.Array) -> jax.Array:
        ratio = jnp.exp(log_snr)
        return ratio / (k + ratio) ** gamma * on_output**2

    return weight


@described(
    sigma_data="standard deviation of the images; 0.5 in the paper",
)
def edm(sigma_data: float = 0.5) -> Weighting:
    """(sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on the error in x_0 (Karras et al. 2022, table 1)."""
    if not sigma_data > 0:
        raise ValueError(f"sigma_data is {sigma_data}; it must be above 0")
    return lambda log_snr, on_output: (jnp.exp(log_snr) + 1 / sigma_data**2) * on_output**2


# A config's `weighting.name` picks one of these; the other fields of the section are its arguments.
WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "simple": simple,
    "snr": snr,
    "min_snr": min_snr,
    "p2": p2,
    "edm": edm,
}
