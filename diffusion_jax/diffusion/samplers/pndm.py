"""Pseudo linear multistep methods: Adams-Bashforth weights for equal steps, and a DDIM step as the transfer."""

from __future__ import annotations

from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import core, grid
from diffusion_jax.diffusion.samplers.grid import Grid

# Weights of the newest noise estimates, by how many there are.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def _transfer(points: Grid, i: int, weights: tuple[float, ...]) -> tuple[float, list[float]]:
    """DDIM from point i to the next with the weighted noise estimate, as (weight of x, weights of the history)."""
    alpha, sigma = points.alpha, points.sigma
    kept = alpha[i + 1] / alpha[i]
    return kept, [(sigma[i + 1] - kept * sigma[i]) * weight for weight in weights]


def ipndm_on(points: Grid, order: int = 4, clip: float | None = None) -> core.Sampler:
    """Order grows from 1 to `order` as estimates are gathered (Zhang and Chen 2023, section 3, "iPNDM").

    The weights are those of equal steps whatever the steps are; `lms_on` has the weights of the actual ones.
    """
    if order not in ADAMS_BASHFORTH:
        raise ValueError(f"order is {order}; it can be 1 to {max(ADAMS_BASHFORTH)}")
    rows = []
    for i in range(points.num_steps):
        x, history = _transfer(points, i, ADAMS_BASHFORTH[min(i + 1, order)])
        rows.append(points.row(i, x=x, history=history, estimate=points.noise_estimate(i)))
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


def plms_on(points: Grid, clip: float | None = None) -> core.Sampler:
    """PNDM with a linear multistep start (Liu et al. 2022, eq. 9 and 12; the PLMS of latent diffusion).

    The first step is Heun's, so that there is one evaluation more than steps; its second estimate is not used again.
    """
    first, *others = range(points.num_steps)
    x, history = _transfer(points, first, (1.0,))
    guess = points.row(
        first,
        x=x,
        history=history,
        estimate=points.noise_estimate(first),
        anchor_x=1.0,
        anchor_anchor=0.0,
    )
    if not others:
        return core.build([guess], init_noise_sigma=points.init_noise_sigma, clip=clip)
    x, history = _transfer(points, first, (1 / 2, 1 / 2))
    rows = [
        guess,
        points.row(1, step=first, anchor=x, history=history, estimate=points.noise_estimate(1)),
    ]
    for i in others:
        x, history = _transfer(points, i, ADAMS_BASHFORTH[min(i + 1, 4)])
        if i < 4:
            history.insert(i, 0.0)  # the place of the second estimate of Heun's step
        rows.append(points.row(i, x=x, history=history, estimate=points.noise_estimate(i)))
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


def ipndm(
    process: Process,
    prediction: str,
    num_steps: int = 50,
    *,
    spacing_rule: str | None = None,
    offset: int = 0,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    denoise_to_zero: bool = True,
    order: int = 4,
    clip: float | None = None,
) -> core.Sampler:
    """One evaluation a step; see `ipndm_on`, and `grid.make` for the other options."""
    points = grid.make(process, prediction, num_steps, spacing_rule, offset, rho, sigma_min, sigma_max, denoise_to_zero)
    return ipndm_on(points, order, clip)


def plms(
    process: Process,
    prediction: str,
    num_steps: int = 50,
    *,
    spacing_rule: str | None = None,
    offset: int = 0,
    rho: float = 7.0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    denoise_to_zero: bool = True,
    clip: float | None = None,
) -> core.Sampler:
    """One evaluation a step, and one more; see `plms_on`, and `grid.make` for the other options."""
    points = grid.make(process, prediction, num_steps, spacing_rule, offset, rho, sigma_min, sigma_max, denoise_to_zero)
    return plms_on(points, clip)
