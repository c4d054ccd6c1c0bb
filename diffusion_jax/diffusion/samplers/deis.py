"""Diffusion exponential integrator sampler (DEIS)."""

from __future__ import annotations

import numpy as np

from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import core, grid, multistep, texts
from diffusion_jax.diffusion.samplers.grid import Grid
from diffusion_jax.options import described


def deis_on(points: Grid, order: int = 3, lower_order_final: bool = True, clip: float | None = None) -> core.Sampler:
    """Integrates the polynomial in log ratio through the last `order` noise estimates.

    Zhang and Chen 2023, eq. 15, with their rho = ratio and polynomials in log rho, as in diffusers; `lms_on` is the
    same in rho itself. A step to zero noise is Euler's, since log rho has no end there.
    """
    ratios, alpha = points.ratios, points.alpha
    rows = []
    taper = lower_order_final and points.num_steps < multistep.FEW_STEPS
    orders = multistep.orders(points.num_steps, order, taper=taper, to_zero=ratios[-1] == 0)
    for i, usable in enumerate(orders):
        if usable == 1:
            weights = np.array([ratios[i + 1] - ratios[i]])
        else:
            seen, (start, end) = np.log(ratios[i - np.arange(usable)]), np.log(ratios[i : i + 2])
            weights = multistep.lagrange_weights(seen, start, end, weight_log=True)
        rows.append(
            points.row(
                i,
                x=alpha[i + 1] / alpha[i],
                history=(alpha[i + 1] * weights).tolist(),
                estimate=points.noise_estimate(i),
            )
        )
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


@described(
    texts.GRID,
    texts.ORDER,
    texts.LOWER_ORDER,
)
def deis(
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
    order: int = 3,
    lower_order_final: bool = True,
    clip: float | None = None,
) -> core.Sampler:
    """Order `order`, one evaluation a step; see `deis_on`, and `grid.make` for the other options."""
    points = grid.make(process, prediction, num_steps, spacing_rule, offset, rho, sigma_min, sigma_max, denoise_to_zero)
    return deis_on(points, order, lower_order_final, clip)
