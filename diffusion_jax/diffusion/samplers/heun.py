"""Heun's method for the probability-flow ODE, on the points of a grid."""

from __future__ import annotations

from diffusion_jax.diffusion.samplers import core, grid, texts
from diffusion_jax.diffusion.samplers.grid import Grid
from diffusion_jax.options import described


def heun_on(points: Grid, clip: float | None = None) -> core.Sampler:
    """The trapezoidal rule with an Euler step as its guess (Karras et al. 2022, algorithm 1).

    Between two points, alpha and sigma are taken to move on a straight line. That is Heun's method in sigma where the
    state is x_0 + sigma noise, and in t on a rectified flow. A last step to sigma = 0 is Euler's.
    """
    alpha, sigma = points.alpha, points.sigma
    rows = []
    for i in range(points.num_steps):
        d_alpha, d_sigma = alpha[i + 1] - alpha[i], sigma[i + 1] - sigma[i]
        # dx = sigma'/sigma x + (alpha' - alpha sigma'/sigma) x_0, at the start of the step and at its end.
        on_x, on_x0 = d_sigma / sigma[i], d_alpha - alpha[i] * d_sigma / sigma[i]
        if sigma[i + 1] == 0:
            rows.append(points.row(i, x=1 + on_x, history=(on_x0,)))
            continue
        # The anchor keeps x + dx / 2 while the guess is evaluated.
        start = points.row(
            i, x=1 + on_x, history=(on_x0,), anchor_x=1 + on_x / 2, anchor_anchor=0.0, anchor_history=(on_x0 / 2,)
        )
        on_x, on_x0 = d_sigma / sigma[i + 1], d_alpha - alpha[i + 1] * d_sigma / sigma[i + 1]
        rows += [start, points.row(i + 1, step=i, anchor=1.0, x=on_x / 2, history=(on_x0 / 2,))]
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


@described(
    texts.GRID,
)
@grid.on_points()
def heun(
    points: Grid,
    clip: float | None = None,
) -> core.Sampler:
    """Second order, two evaluations a step; see `heun_on`, and `grid.Points` for the options."""
    return heun_on(points, clip)
