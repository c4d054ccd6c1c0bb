"""DPM-Solver++ singlestep (2S, 3S): each step of the solver spends its evaluations inside itself."""

from __future__ import annotations

import numpy as np

from diffusion_jax.diffusion.samplers import core, grid, texts
from diffusion_jax.diffusion.samplers.dpmpp import integrals
from diffusion_jax.diffusion.samplers.grid import Grid
from diffusion_jax.options import described


def dpmpp_singlestep_on(
    points: Grid, order: int = 2, lower_order_final: bool = True, clip: float | None = None, begun: int = 0
) -> core.Sampler:
    """DPM-Solver++(2S) and, with order 3, (3S) on a grid whose points are taken in groups of `order`.

    Lu et al. 2022b, algorithm 1: the points inside a group are the intermediate ones of a step from its first point to
    the next group's, so that N points cost N evaluations. Groups may be left incomplete at the end, and a step to zero
    noise is of order 1; lower_order_final makes the last step of a complete last group one of order 1 as well.

    begun: so many points are left out at the start, where the others keep their places in the groups; a place whose
    group has lost its beginning is one of a lower order.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; it can be 1, 2 or 3")
    alpha, sigma, half = points.alpha, points.sigma, points.log_snr_half
    rows = []
    places = [i % order for i in range(points.num_steps)]
    if sigma[-1] == 0 or (lower_order_final and places[-1] == order - 1):
        places[-1] = 0
    for i, place in enumerate(places):
        if i < begun:
            continue
        place = min(place, i - begun)
        start = i - place
        h = half[i + 1] - half[start]
        constant, linear, _ = integrals(h)
        kept = sigma[i + 1] / sigma[start]
        if place == 0:
            weights = (alpha[i + 1] * constant,)
            rows.append(points.row(i, step=i - begun, x=kept, history=weights, anchor_x=1.0, anchor_anchor=0.0))
            continue
        # The slope of x_0 between the first point of the group and this one.
        weight = (constant / 2 if place == 1 else linear) * h / (half[i] - half[start])
        history = alpha[i + 1] * np.array([weight, *[0.0] * (place - 1), constant - weight])
        rows.append(points.row(i, step=i - begun, anchor=kept, history=history.tolist()))
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


@described(
    texts.GRID,
    texts.LOWER_ORDER,
    order="points that one step goes through, up to 3",
)
@grid.on_points()
def dpmpp_singlestep(
    points: Grid,
    order: int = 2,
    lower_order_final: bool = True,
    clip: float | None = None,
) -> core.Sampler:
    """One evaluation a point; see `dpmpp_singlestep_on`, and `grid.Points` for the other options."""
    return dpmpp_singlestep_on(points, order, lower_order_final, clip)
