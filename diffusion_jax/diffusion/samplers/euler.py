"""Euler's method for the probability-flow ODE, and its ancestral version."""

from __future__ import annotations

import numpy as np

from diffusion_jax.diffusion.samplers import core, grid, texts
from diffusion_jax.diffusion.samplers.grid import Grid
from diffusion_jax.options import check_least, described


def euler_on(points: Grid, clip: float | None = None) -> core.Sampler:
    """dy / d ratio = (y - x_0) / ratio with x_0 held over the step (Karras et al. 2022, algorithm 1 without line 6).

    In units of the state, x' = sigma'/sigma x + (alpha' - alpha sigma'/sigma) x_0. The same step is DDIM with eta 0 on
    a variance-preserving process, and Euler's method in t on a rectified flow.
    """
    rows = []
    for i in range(points.num_steps):
        kept = points.sigma[i + 1] / points.sigma[i]
        rows.append(points.row(i, x=kept, history=(points.alpha[i + 1] - points.alpha[i] * kept,)))
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


def euler_ancestral_on(points: Grid, eta: float = 1.0, clip: float | None = None) -> core.Sampler:
    """A longer Euler step, then noise up to the level aimed at (k-diffusion's `sample_euler_ancestral`).

    With eta 1 the step is a draw from the posterior q(x_s | x_t, x_0), as in DDPM; eta 0 is `euler_on`.
    """
    rows = []
    for i in range(points.num_steps):
        kept = points.sigma[i + 1] / points.sigma[i]
        change = kept * points.alpha[i] / points.alpha[i + 1]  # ratio' / ratio
        down = np.sqrt(1 - eta**2 * (1 - change**2))
        rows.append(
            points.row(
                i,
                x=kept * down,
                history=(points.alpha[i + 1] * (1 - change * down),),
                noise=eta * points.sigma[i + 1] * np.sqrt(1 - change**2),
            )
        )
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


@described(
    texts.GRID,
)
@grid.on_points()
def euler(
    points: Grid,
    clip: float | None = None,
) -> core.Sampler:
    """First order, one evaluation a step; see `euler_on`, and `grid.Points` for the options."""
    return euler_on(points, clip)


@described(
    texts.GRID,
    eta="noise of a step: 0 is deterministic, 1 has DDPM's",
)
@grid.on_points()
def euler_ancestral(
    points: Grid,
    eta: float = 1.0,
    clip: float | None = None,
) -> core.Sampler:
    """Stochastic, one evaluation a step; see `euler_ancestral_on`, and `grid.Points` for the options."""
    check_least(0, eta=eta)
    return euler_ancestral_on(points, eta, clip)
