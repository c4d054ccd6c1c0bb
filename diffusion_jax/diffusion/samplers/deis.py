"""Diffusion exponential integrator sampler (DEIS)."""

from __future__ import annotations

import numpy as np

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
@grid.on_points()
def deis(
    points: Grid,
    order: int = 3,
    lower_order_final: bool = True,
    clip: float | None = None,
) -> core.Sampler:
    """Order `order`, one evaluation a step; see `deis_on`, and `grid.Points` for the other options."""
    return deis_on(points, order, lower_order_final, clip)
