"""Preconditioning: what surrounds a network F so that c_skip x + c_out F(c_in x, c_noise) estimates x_0.

Karras et al. 2022, table 1, "Network and preconditioning", with x = x_0 + sigma noise. Each function takes noise levels
sigma of any shape, Python floats, NumPy or JAX, and answers in kind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diffusion_jax.diffusion.arrays import Number, namespace


class Preconditioning(NamedTuple):
    """The four factors, each of sigma's shape. c_noise is the timestep that the network is told."""

    c_skip: Number
    c_out: Number
    c_in: Number
    c_noise: Number


def edm(sigma: Number, sigma_data: float = 0.5) -> Preconditioning:
    """Karras et al. 2022, table 1, column "EDM". sigma_data: standard deviation of the images."""
    xp = namespace(sigma)
    total = sigma**2 + sigma_data**2
    return Preconditioning(
        c_skip=sigma_data**2 / total,
        c_out=sigma * sigma_data / xp.sqrt(total),
        c_in=1 / xp.sqrt(total),
        c_noise=xp.log(sigma) / 4,
    )


def vp(sigma: Number, beta_d: float = 19.9, beta_min: float = 0.1, num_timesteps: int = 1000) -> Preconditioning:
    """The variance-preserving networks of Song et al. 2021, told (num_timesteps - 1) t with t in [0, 1]."""
    xp = namespace(sigma)
    return Preconditioning(
        c_skip=xp.ones_like(sigma),
        c_out=-sigma,
        c_in=1 / xp.sqrt(sigma**2 + 1),
        c_noise=(num_timesteps - 1) * vp_time(sigma, beta_d, beta_min),
    )


def vp_sigma(t: Number, beta_d: float = 19.9, beta_min: float = 0.1) -> Number:
    """sigma(t) of the variance-preserving SDE with beta(t) = beta_min + beta_d t (table 1, column "VP")."""
    xp = namespace(t)
    return xp.sqrt(xp.expm1(beta_d * t**2 / 2 + beta_min * t))


def vp_time(sigma: Number, beta_d: float = 19.9, beta_min: float = 0.1) -> Number:
    """The inverse of `vp_sigma`."""
    xp = namespace(sigma)
    return (xp.sqrt(beta_min**2 + 2 * beta_d * xp.log1p(sigma**2)) - beta_min) / beta_d


def ve(sigma: Number) -> Preconditioning:
    """The variance-exploding networks of Song et al. 2021, told log(sigma / 2)."""
    xp = namespace(sigma)
    one = xp.ones_like(sigma)
    return Preconditioning(c_skip=one, c_out=sigma, c_in=one, c_noise=xp.log(sigma / 2))


def iddpm(sigma: Number, num_timesteps: int = 1000) -> Preconditioning:
    """The networks of Nichol and Dhariwal 2021 with the cosine schedule, told the index of the nearest noise level.

    The levels that such a network was trained at are `iddpm_sigmas`; use it at those.
    """
    xp = namespace(sigma)
    levels = xp.asarray(iddpm_sigmas(num_timesteps))
    nearest = xp.argmin(xp.abs(xp.asarray(sigma)[..., None] - levels), axis=-1)
    return Preconditioning(
        c_skip=xp.ones_like(sigma),
        c_out=-sigma,
        c_in=1 / xp.sqrt(sigma**2 + 1),
        c_noise=num_timesteps - 1 - nearest,
    )


def iddpm_sigmas(num_timesteps: int = 1000, max_beta: float = 0.999, offset: float = 0.008) -> np.ndarray:
    """Noise levels u_0 > ... > u_M = 0 of the cosine schedule, float64 [M + 1] (table 1, column "iDDPM")."""
    # The authors' alpha_bar is float32, and so are the levels that networks are used at: 1e-5 beside the exact ones.
    j = np.arange(num_timesteps + 1, dtype=np.float32)
    alpha_bar = np.sin(np.float32(np.pi / 2) * j / np.float32(num_timesteps) / np.float32(offset + 1)) ** 2
    levels = np.zeros(num_timesteps + 1)
    for k in range(num_timesteps, 0, -1):
        ratio = max(alpha_bar[k - 1] / alpha_bar[k], 1 - max_beta)
        levels[k - 1] = np.sqrt((levels[k] ** 2 + 1) / np.float64(ratio) - 1)
    return levels


def nearest_trained(prediction: str, sigma: Number) -> Number:
    """The noise level next to sigma that a network was trained at: sigma itself, but for "iddpm"."""
    if prediction != "iddpm":
        return sigma
    levels = iddpm_sigmas()[:-1]
    return levels[np.argmin(np.abs(np.asarray(sigma)[..., None] - levels), axis=-1)]


PRECONDITIONINGS: dict[str, Callable[[Number], Preconditioning]] = {"edm": edm, "vp": vp, "ve": ve, "iddpm": iddpm}
