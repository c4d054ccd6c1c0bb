"""Linear multistep (Adams-Bashforth with variable steps) in the noise level."""

from __future__ import annotations

import numpy as np

from diffusion_jax.diffusion.samplers import core, grid, multistep, texts
from diffusion_jax.diffusion.samplers.grid import Grid
from diffusion_jax.options import described


def lms_on(points: Grid, order: int = 4, clip: float | None = None, begun: int = 0) -> core.Sampler:
    """Integrates the polynomial in ratio through the last `order` noise estimates (k-diffusion's `sample_lms`).

    It is DEIS with polynomials in rho (Zhang and Chen 2023, eq. 15, "rhoAB"). The order grows from 1 as estimates are
    gathered.

    begun: so many points are left out at the start. As in diffusers the weights stay those of the whole run, and what
    was never evaluated counts as 0.
    """
    ratios, alpha = points.ratios, points.alpha
    rows = []
    for i, usable in enumerate(multistep.orders(points.num_steps, order)):
        if i < begun:
            continue
        seen = ratios[i - np.arange(usable)]
        weights = alpha[i + 1] * multistep.lagrange_weights(seen, ratios[i], ratios[i + 1], weight_log=False)
        history = weights[: i - begun + 1].tolist()
        rows.append(
            points.row(i, step=i - begun, x=alpha[i + 1] / alpha[i], history=history, estimate=points.noise_estimate(i))
        )
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


@described(
    texts.GRID,
    texts.ORDER,
)
@grid.on_points()
def lms(
    points: Grid,
    order: int = 4,
    clip: float | None = None,
) -> core.Sampler:
    """Order `order`, one evaluation a step; see `lms_on`, and `grid.Points` for the other options."""
    return lms_on(points, order, clip)
