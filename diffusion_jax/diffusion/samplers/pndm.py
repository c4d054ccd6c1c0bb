"""Pseudo linear multistep methods: Adams-Bashforth weights for equal steps, and a DDIM step as the transfer."""

from __future__ import annotations

import numpy as np

from diffusion_jax.diffusion.process import DiscreteProcess
from diffusion_jax.diffusion.samplers import core, grid, spacing, texts
from diffusion_jax.diffusion.samplers.grid import Grid
from diffusion_jax.options import described

# Weights of the newest noise estimates, by how many there are.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
# How many steps PNDM begins with that are Runge-Kutta's.
_WARMUP = 3


def _transfer(points: Grid, i: int, weights: tuple[float, ...]) -> tuple[float, list[float]]:
    """DDIM from point i to the next with the weighted noise estimate, as (weight of x, weights of the history)."""
    return _transfer_to(points.alpha[i + 1], points.sigma[i + 1], points, i, weights)


def _transfer_to(
    alpha: float, sigma: float, points: Grid, i: int, weights: tuple[float, ...]
) -> tuple[float, list[float]]:
    """Likewise to any level."""
    kept = alpha / points.alpha[i]
    return kept, [(sigma - kept * points.sigma[i]) * weight for weight in weights]


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


def pndm_on(points: Grid, halves: Grid, clip: float | None = None) -> core.Sampler:
    """PNDM: three steps by the pseudo Runge-Kutta method, then the linear multistep one (Liu et al. 2022, algorithm 2).

    halves: its k-th point lies halfway between points k and k + 1. Four evaluations a Runge-Kutta step, of which the
    first is the one that later steps use.
    """
    rows: list[core.Row] = []
    first_of_step = []  # the row of each step whose estimate later steps use
    for i in range(points.num_steps):
        first_of_step.append(len(rows))
        noise = points.noise_estimate(i)
        if i >= min(_WARMUP, points.num_steps - 1):
            used = [len(rows) - row for row in reversed(first_of_step[-4:])]  # their places in the history
            weights = np.zeros(max(used) + 1)
            weights[used] = ADAMS_BASHFORTH[len(used)]
            x, history = _transfer(points, i, tuple(weights))
            rows.append(points.row(i, x=x, history=history, estimate=noise))
            continue
        half, half_history = _transfer_to(halves.alpha[i], halves.sigma[i], points, i, (1.0,))
        whole, whole_history = _transfer(points, i, (1.0,))
        # The anchor keeps the state at the step's start.
        start = points.row(i, x=half, history=half_history, estimate=noise, anchor_x=1.0, anchor_anchor=0.0)
        middle = halves.noise_estimate(i)
        rows += [
            start,
            halves.row(i, anchor=half, history=half_history, estimate=middle),
            halves.row(i, anchor=whole, history=whole_history, estimate=middle),
        ]
        _, history = _transfer(points, i, (1 / 6, 1 / 3, 1 / 3, 1 / 6))
        rows.append(points.row(i + 1, step=i, anchor=whole, history=history, estimate=points.noise_estimate(i + 1)))
    return core.build(rows, init_noise_sigma=points.init_noise_sigma, clip=clip)


def warmup_times(times: np.ndarray, stride: int) -> np.ndarray:
    """The timesteps halfway of PNDM's first steps, for visited timesteps [N] that are `stride` apart."""
    return times[1 : 1 + _WARMUP] + stride // 2


@described(
    texts.TIMESTEPS,
    texts.CLIP,
    final_alpha_cumprod=(
        "share of the image's variance where the last step lands: 1, or that of the first timestep in latent diffusion"
    ),
)
def pndm(
    process: DiscreteProcess,
    prediction: str,
    num_steps: int = 50,
    *,
    spacing_rule: str = "leading",
    offset: int = 0,
    final_alpha_cumprod: float = 1.0,
    clip: float | None = None,
) -> core.Sampler:
    """One evaluation a step and nine more; see `pndm_on`.

    final_alpha_cumprod is alpha_bar where the last step lands, as in `ddim`. Raises ValueError for timesteps that are
    not evenly spaced, and for a process in continuous time.
    """
    if not isinstance(process, DiscreteProcess):
        raise ValueError("the pndm sampler needs a discrete process, such as linear or cosine; ipndm takes others")
    times = spacing.timesteps(spacing_rule, process.num_timesteps, num_steps, offset)
    strides = np.unique(-np.diff(times))
    if len(strides) > 1:
        raise ValueError(
            f"spacing_rule {spacing_rule!r} with {num_steps} steps is {strides[0]} to {strides[-1]} timesteps apart; "
            "pndm needs even steps, as of 'leading'"
        )
    end = np.sqrt(final_alpha_cumprod), np.sqrt(1 - final_alpha_cumprod)

    def at(visited: np.ndarray) -> Grid:
        alpha, sigma = np.asarray(process.alpha(visited)), np.asarray(process.sigma(visited))
        return grid.assemble(prediction, visited.astype(np.float64), alpha, sigma, end=end, init_noise_sigma=1.0)

    halves = warmup_times(times, int(strides[0]) if len(strides) else 0)
    return pndm_on(at(times), at(halves), clip)


@described(
    texts.GRID,
    order="earlier estimates that a step looks back at, up to 4",
)
@grid.on_points()
def ipndm(
    points: Grid,
    order: int = 4,
    clip: float | None = None,
) -> core.Sampler:
    """One evaluation a step; see `ipndm_on`, and `grid.Points` for the other options."""
    return ipndm_on(points, order, clip)


@described(
    texts.GRID,
)
@grid.on_points()
def plms(
    points: Grid,
    clip: float | None = None,
) -> core.Sampler:
    """One evaluation a step, and one more; see `plms_on`, and `grid.Points` for the other options."""
    return plms_on(points, clip)
