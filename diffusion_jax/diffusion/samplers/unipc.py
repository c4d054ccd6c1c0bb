"""UniPC: a multistep predictor whose next evaluation also corrects the step that led to it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from diffusion_jax.diffusion.samplers import core, grid, multistep, texts
from diffusion_jax.diffusion.samplers.grid import Grid
from diffusion_jax.options import described

VARIANTS = ("bh1", "bh2")


def unipc_on(
    points: Grid,
    order: int = 2,
    variant: str = "bh2",
    lower_order_final: bool = True,
    uncorrected: Collection[int] = (),
    clip: float | None = None,
) -> core.Sampler:
    """UniPC for the estimate of x_0 (Zhao et al. 2023, algorithms 1 and 2, and their data-prediction form, appendix).

    variant: B(h), h ("bh1") or e^h - 1 ("bh2"). The predictor is of order `order`, with the corrector one higher.
    lower_order_final: the order falls to 1 at the end, as a step to zero noise needs. uncorrected: the steps, counted
    from 0, whose ends stay as they were predicted.
    """
    if order < 1:
        raise ValueError(f"order is {order}; it must be 1 or more")
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; it can be {', '.join(VARIANTS)}")
    half, alpha, sigma = points.log_snr_half, points.alpha, points.sigma
    to_zero = sigma[-1] == 0
    orders = multistep.orders(points.num_steps, order, taper=lower_order_final, to_zero=to_zero)
    length = order + 1  # of the history: the corrector sees the newest estimate besides the predictor's

    def update(i: int, usable: int, corrected: bool) -> tuple[float, np.ndarray]:
        """Weights of the state at point i and of the estimates at i + 1, i, i - 1, ... in the state at i + 1."""
        h = half[i + 1] - half[i]
        usable = usable if h else 1  # a step that goes nowhere, at the end of some of diffusers' schedules
        places = [(half[i - k] - half[i]) / h for k in range(1, usable)]
        rho, scale = _combination(h, np.array([*places, 1.0]), variant, corrected)
        weights = np.zeros(length + 1)
        for k, place in enumerate([*places, 1.0][: len(rho)]):
            newer = 0 if place == 1.0 else k + 2
            weights[newer] += scale * rho[k] / place
            weights[1] -= scale * rho[k] / place
        weights[1] += -np.expm1(-h)
        return sigma[i + 1] / sigma[i], alpha[i + 1] * weights

    rows = []
    for i, usable in enumerate(orders):
        # The state at point i from (x, anchor, history): x itself, or the corrected end of the last step.
        state = np.zeros(2 + length)
        if i and i - 1 not in uncorrected:
            state[1], weights = update(i - 1, orders[i - 1], True)
            state[2:] = weights[:length]
        else:
            state[0] = 1.0
        kept, weights = update(i, usable, False)
        following = kept * state
        following[2:] += weights[1 : length + 1]
        rows.append(
            points.row(
                i,
                x=following[0],
                anchor=following[1],
                history=following[2:].tolist(),
                anchor_x=state[0],
                anchor_anchor=state[1],
                anchor_history=state[2:].tolist(),
            )
        )
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


def _combination(h: float, places: np.ndarray, variant: str, corrected: bool) -> tuple[np.ndarray, float]:
    """The weights rho of the differences at `places` (in units of h; the last is the end of the step), and their scale.

    They match the integrals of the first powers (theorem 3.1, R rho = phi / B). The predictor leaves the end out, where
    there is no estimate yet; the weight of a single difference is 1/2 as in the authors' code.
    """
    count = len(places) if corrected else len(places) - 1
    scale = h if variant == "bh1" else -np.expm1(-h)
    if count == 0:
        return np.zeros(0), scale
    if count == 1:
        return np.array([0.5]), scale
    # phi_k = int_0^1 e^(-h (1 - u)) u^k h du, by recursion.
    moments, phi = [], -np.expm1(-h)
    for k in range(1, count + 1):
        phi = 1 - k * phi / h
        moments.append(phi / scale)
    powers = places[:count] ** np.arange(count)[:, None]
    return np.linalg.solve(powers, np.array(moments)), scale


@described(
    texts.GRID,
    texts.ORDER,
    texts.LOWER_ORDER,
    variant="how step sizes enter: bh1 or bh2",
)
@grid.on_points()
def unipc(
    points: Grid,
    order: int = 2,
    variant: str = "bh2",
    lower_order_final: bool = True,
    clip: float | None = None,
) -> core.Sampler:
    """One evaluation a step; see `unipc_on`, and `grid.Points` for the other options."""
    return unipc_on(points, order, variant, lower_order_final, clip=clip)
