"""DPM-Solver++: multistep of order 1 to 3 (2M, 3M), for the ODE and for the SDE."""

from __future__ import annotations

import numpy as np

from diffusion_jax.diffusion.samplers import core, grid, multistep, texts
from diffusion_jax.diffusion.samplers.grid import Grid
from diffusion_jax.options import described

VARIANTS = ("midpoint", "heun")
_TEXTS = (
    texts.GRID,
    texts.ORDER,
    texts.LOWER_ORDER,
    {"variant": "of the second-order step: midpoint or heun"},
)


def integrals(h: float) -> tuple[float, float, float]:
    """How much x_0, its slope times h and its curvature times h^2 weigh in exp(-h) int_0^h exp(u) x_0(u) du.

    1 - e^-h, then 1 - (1 - e^-h) / h, then 1/2 - (1 - (1 - e^-h) / h) / h (Lu et al. 2022b, eq. 9). h may be
    0 or infinite.
    """
    if h == 0:
        return 0.0, 0.0, 0.0
    constant = -np.expm1(-h)
    linear = 1 - constant / h
    return constant, linear, 0.5 - linear / h


def dpmpp_on(
    points: Grid,
    order: int = 2,
    variant: str = "midpoint",
    stochastic: bool = False,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    clip: float | None = None,
) -> core.Sampler:
    """The solution for a polynomial estimate of x_0 in lambda = log(alpha / sigma), through the last `order` ones.

    Lu et al. 2022b (DPM-Solver++), algorithm 2 and appendix D; stochastic: its SDE form, appendix C, which steps as if
    h were doubled and adds noise. variant: of the second-order step, "midpoint" (algorithm 2) or "heun" (the exact
    integral). lower_order_final: the order falls to 1 at the end when there are fewer than 15 steps. A step to zero
    noise is always of order 1, and so is the last one with euler_at_final.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order is {order}; it can be 1, 2 or 3")
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; it can be {', '.join(VARIANTS)}")
    alpha, sigma = points.alpha, points.sigma
    h = np.diff(points.log_snr_half)
    taper = lower_order_final and points.num_steps < multistep.FEW_STEPS
    orders = multistep.orders(points.num_steps, order, taper=taper, to_zero=euler_at_final or sigma[-1] == 0)
    rows = []
    for i, usable in enumerate(orders):
        kept, noise = sigma[i + 1] / sigma[i], 0.0
        constant, linear, square = integrals(2 * h[i] if stochastic else h[i])
        if stochastic:
            kept, noise = kept * np.exp(-h[i]), sigma[i + 1] * np.sqrt(-np.expm1(-2 * h[i]))
        weights = np.array([constant, 0.0, 0.0])
        if usable > 1:
            slope = h[i] / h[i - 1] * np.array([1.0, -1.0, 0.0])
            if usable == 2:
                weights += (constant / 2 if variant == "midpoint" else linear) * slope
            else:
                # The quadratic through three estimates. The authors' code, followed here, weighs its u^2 as if it were
                # u^2 / 2, which makes 3M second order with a small error constant.
                earlier = h[i] / h[i - 2] * np.array([0.0, 1.0, -1.0])
                span = h[i - 1] + h[i - 2]
                weights += linear * (slope + h[i - 1] / span * (slope - earlier)) + square * h[i] / span * (
                    slope - earlier
                )
        rows.append(points.row(i, x=kept, history=(alpha[i + 1] * weights[:order]).tolist(), noise=noise))
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


@described(*_TEXTS)
@grid.on_points()
def dpmpp(
    points: Grid,
    order: int = 2,
    variant: str = "midpoint",
    lower_order_final: bool = True,
    clip: float | None = None,
) -> core.Sampler:
    """DPM-Solver++(2M) and, with order 3, (3M): one evaluation a step; see `dpmpp_on` and `grid.Points`."""
    return dpmpp_on(points, order, variant, lower_order_final=lower_order_final, clip=clip)


@described(*_TEXTS)
@grid.on_points()
def dpmpp_sde(
    points: Grid,
    order: int = 2,
    variant: str = "midpoint",
    lower_order_final: bool = True,
    clip: float | None = None,
) -> core.Sampler:
    """SDE-DPM-Solver++(2M) and, with order 3, (3M): one evaluation a step; see `dpmpp_on` and `grid.Points`."""
    return dpmpp_on(points, order, variant, stochastic=True, lower_order_final=lower_order_final, clip=clip)
