"""The reverse SDE of a flow with a diffusion coefficient of one's choice (SiT, Ma et al. 2024, arXiv:2401.08740).

dx = v dt - w score dt + sqrt(2 w) dw, run from noise to image, has the flow's marginals whatever w(t) >= 0 is. The
paper writes w_t for 2 w; the names and sizes of w here are those of the released code. Here t runs from image to noise,
as everywhere in this package, and is counted in the unit interval; the authors' runs the other way.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from diffusion_jax.diffusion.continuous import VPSDE, RectifiedFlow
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import core, grid, texts
from diffusion_jax.diffusion.samplers.grid import Grid
from diffusion_jax.options import described

FORMS = ("sigma", "constant", "sbdm", "linear", "decreasing", "increasing_decreasing")
LAST_STEPS = ("mean", "tweedie", "euler", "none")
SOLVERS = ("euler", "heun")
# Where sampling begins if something is infinite at t = 1, where no signal is left.
_FIRST_TIME = 1 - 1e-3


def sde_on(
    points: Grid,
    times: np.ndarray,
    solver: str = "euler",
    diffusion_form: str = "sigma",
    diffusion_norm: float = 1.0,
    last_step: str = "mean",
) -> core.Sampler:
    """Euler-Maruyama, or Heun's method after the step's noise. times: of the points, in [0, 1], float64 [N + 1].

    Between two points, alpha and sigma are taken to move on a straight line, as on a rectified flow they do.
    """
    rows = []
    for i in range(points.num_steps):
        h, is_last = times[i] - times[i + 1], i == points.num_steps - 1
        if is_last and last_step == "tweedie":
            rows.append(points.row(i, history=(1.0,)))
            continue
        slopes = (points.alpha[i] - points.alpha[i + 1]) / h, (points.sigma[i] - points.sigma[i + 1]) / h
        w = _diffusion(diffusion_form, diffusion_norm, points, times, i, slopes)
        if is_last and last_step == "euler":
            w = 0.0
        on_x, on_x0 = _drift(points, i, slopes, w)
        noise = 0.0 if is_last and last_step != "none" else np.sqrt(2 * w * h)
        row = points.row(i, x=1 + h * on_x, history=(h * on_x0,))
        rows.append(row)
        if solver == "euler":
            row.noise = noise
            continue
        row.churn = noise
        if is_last:  # a step to sigma = 0, where the score is infinite, is Euler's
            continue
        row.anchor_x, row.anchor_anchor, row.anchor_history = 1 + h / 2 * on_x, 0.0, (h / 2 * on_x0,)
        w = _diffusion(diffusion_form, diffusion_norm, points, times, i + 1, slopes)
        on_x, on_x0 = _drift(points, i + 1, slopes, w)
        rows.append(points.row(i + 1, step=i, anchor=1.0, x=h / 2 * on_x, history=(h / 2 * on_x0,)))
    return core.build(rows, init_noise_sigma=points.init_noise_sigma)


def _diffusion(form: str, norm: float, points: Grid, times: np.ndarray, i: int, slopes: tuple[float, float]) -> float:
    """w at point i (table 2 of the paper); slopes: alpha' and sigma'."""
    sigma, t = points.sigma[i], times[i]
    if form == "decreasing":
        return 0.25 * (1 - norm * np.cos(np.pi * t)) ** 2
    if form == "sbdm":  # g^2 / 2 of the forward SDE with these marginals
        return norm * sigma * (slopes[1] - sigma * slopes[0] / points.alpha[i])
    return norm * {"constant": 1.0, "sigma": sigma, "linear": t, "increasing_decreasing": np.sin(np.pi * t) ** 2}[form]


def _drift(points: Grid, i: int, slopes: tuple[float, float], w: float) -> tuple[float, float]:
    """-v + w score at point i as (on x, on x_0), with v = alpha' x_0 + sigma' noise and score = -noise / sigma."""
    on_noise = -slopes[1] - w / points.sigma[i]
    on_x, on_x0 = points.noise_estimate(i)
    return on_noise * on_x, on_noise * on_x0 - slopes[0]


@described(
    texts.NUM_STEPS,
    solver="euler, or heun: first the noise of a step, then Heun's method",
    diffusion_form="of the noise by time: constant, sigma, linear, decreasing, increasing_decreasing or sbdm",
    diffusion_norm="factor of that noise",
    last_step="to no noise: mean (a step without its noise), tweedie, euler, or none for an equal step",
    last_step_size="length of the last step in the unit interval",
)
def sde(
    process: Process,
    prediction: str,
    num_steps: int = 250,
    *,
    solver: str = "euler",
    diffusion_form: str = "sigma",
    diffusion_norm: float = 1.0,
    last_step: str = "mean",
    last_step_size: float = 0.04,
) -> core.Sampler:
    """SiT's SDE sampler, with the released code's defaults. One evaluation a step; two with Heun, but for the last.

    Args:
      process: rectified_flow, vp_sde or sub_vp_sde. Times are evenly spaced (before a flow's shift) from 1 to
        last_step_size; where that has no signal, sbdm and networks that predict epsilon or the score begin at 0.999.
      prediction: what the network was trained for.
      num_steps: with the last. The released code counts time points, which are as many, but for last_step "none".
      solver: "euler", or "heun": first the step's noise, then Heun's method.
      diffusion_form: w(t): "constant" 1, "sigma" sigma_t, "linear" t, "decreasing" (1 - cos(pi t))^2 / 4,
        "increasing_decreasing" sin(pi t)^2, "sbdm" half of the squared diffusion of the forward SDE.
      diffusion_norm: the factor of w; of the cosine in "decreasing".
      last_step: from last_step_size to 0: "mean", the SDE's step without its noise; "tweedie", the estimate of x_0;
        "euler", the ODE's step. "none": num_steps equal steps of the SDE to 0, noise and all.
      last_step_size: in the unit interval; unused with "none".

    Raises:
      ValueError: a name that does not exist, a number out of range, or a process without a unit interval of time.
    """
    for name, value, known in (
        ("solver", solver, SOLVERS),
        ("diffusion_form", diffusion_form, FORMS),
        ("last_step", last_step, LAST_STEPS),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it can be {', '.join(known)}")
    if not isinstance(process, RectifiedFlow | VPSDE):
        raise ValueError("the sde sampler needs a process rectified_flow, vp_sde or sub_vp_sde")
    if num_steps < 2:
        raise ValueError(f"num_steps is {num_steps}; it must be 2 or more")
    if not 0 <= diffusion_norm < np.inf:
        raise ValueError(f"diffusion_norm is {diffusion_norm}; it must be 0 or more")
    if not 0 < last_step_size < _FIRST_TIME:
        raise ValueError(f"last_step_size is {last_step_size}; it must be above 0 and below {_FIRST_TIME}")

    if last_step == "none":
        times, end = process.sampling_times("trailing", num_steps), 0.0
    else:
        times = dataclasses.replace(process, t_stop=last_step_size).sampling_times("linspace", num_steps)
        end = times[-1]
    if not process.alpha(process.t_max) and (diffusion_form == "sbdm" or prediction in ("epsilon", "score")):
        times = np.interp(times, (end, process.t_max), (end, _FIRST_TIME * process.t_max))
    alpha, sigma = process.alpha(times), process.sigma(times)
    points = grid.assemble(prediction, times, alpha, sigma)
    times = np.append(times, 0.0) / process.time_scale
    return sde_on(points, times, solver, diffusion_form, diffusion_norm, last_step)
