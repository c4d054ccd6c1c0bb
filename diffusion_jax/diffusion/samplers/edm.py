"""The samplers of Karras et al. 2022: algorithms 1 and 2, and the general one behind their ablations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from diffusion_jax.diffusion import preconditioning
from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import core, spacing, texts
from diffusion_jax.options import check_least, described

Function = Callable[[float], float]
SOLVERS = ("euler", "heun")
SCHEDULES = ("linear", "vp", "ve")
SCALINGS = ("none", "vp")
# (sigma_min, sigma_max) of each discretisation (table 1); those of VP follow from its betas.
RANGES = {"edm": (0.002, 80.0), "iddpm": (0.002, 81.0), "ve": (0.02, 100.0), "vp": (None, None)}


@dataclasses.dataclass(frozen=True)
class _Path:
    """x = s(t) (x_0 + sigma(t) noise), with the derivatives in t (section 3)."""

    sigma: Function
    sigma_deriv: Function
    sigma_inv: Function
    s: Function = lambda t: 1.0
    s_deriv: Function = lambda t: 0.0


@described(
    texts.NUM_STEPS,
    texts.CHURN,
    sigma_min="smallest noise level",
    sigma_max="largest noise level",
    rho="the higher, the more steps at little noise",
)
def edm(
    process: Process,
    prediction: str,
    num_steps: int = 18,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = float("inf"),
    s_noise: float = 1.0,
) -> core.Sampler:
    """Algorithm 2: Heun's method with added noise; with s_churn 0, algorithm 1. 2 num_steps - 1 evaluations.

    Noise is added at levels from s_min to s_max, s_churn / num_steps of the level at a time and inflated by s_noise.
    """
    return edm_ablation(
        process,
        prediction,
        num_steps,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        rho=rho,
        s_churn=s_churn,
        s_min=s_min,
        s_max=s_max,
        s_noise=s_noise,
    )


@described(
    texts.NUM_STEPS,
    texts.CHURN,
    solver="euler, or heun for the second-order family",
    discretization="where the noise levels are: vp, ve, iddpm or edm",
    schedule="noise level by time: vp, ve or linear",
    scaling="of the state by time: vp or none",
    sigma_min="smallest noise level; None: that of the discretisation",
    sigma_max="largest noise level; None: that of the discretisation",
    rho="of the discretisation edm: the higher, the more steps at little noise",
    epsilon_s="smallest time of the discretisation vp",
    alpha="of the second-order family; 1 is Heun's method",
)
def edm_ablation(
    process: Process,
    prediction: str,
    num_steps: int = 18,
    *,
    solver: str = "heun",
    discretization: str = "edm",
    schedule: str = "linear",
    scaling: str = "none",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float = 7.0,
    epsilon_s: float = 1e-3,
    alpha: float = 1.0,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = float("inf"),
    s_noise: float = 1.0,
) -> core.Sampler:
    """The general sampler of section 3: any combination of the columns of table 1.

    Args:
      process, prediction: what the network was trained for; it is called at whatever level the sampler needs.
      num_steps: N; the last step ends at t = 0.
      solver: "euler", or "heun" for the second-order family of which alpha = 1 is Heun's method (algorithm 3).
      discretization: where the levels are: "vp", "ve", "iddpm" or "edm".
      schedule: sigma(t): "vp", "ve" or "linear".
      scaling: s(t): "vp" or "none".
      sigma_min, sigma_max: None is the discretisation's own range.
      rho: of the discretisation "edm". epsilon_s: the smallest t of "vp".
      s_churn, s_min, s_max, s_noise: as in `edm`.
    """
    check_least(0, s_churn=s_churn, s_noise=s_noise)
    for name, value, known in (
        ("solver", solver, SOLVERS),
        ("discretization", discretization, tuple(RANGES)),
        ("schedule", schedule, SCHEDULES),
        ("scaling", scaling, SCALINGS),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; it can be {', '.join(known)}")
    low, high = RANGES[discretization]
    sigma_min = sigma_min or low or float(preconditioning.vp_sigma(epsilon_s))
    sigma_max = sigma_max or high or float(preconditioning.vp_sigma(1.0))
    # The betas for which VP's schedule spans the same range over [epsilon_s, 1].
    log_low, log_high = np.log1p(sigma_min**2), np.log1p(sigma_max**2)
    beta_d = 2 * (log_low / epsilon_s - log_high) / (epsilon_s - 1)
    beta_min = log_high - beta_d / 2

    path = _path(schedule, scaling, beta_d, beta_min)
    levels = _levels(discretization, num_steps, sigma_min, sigma_max, rho, epsilon_s, (beta_d, beta_min))

    def rounded(sigma: float) -> float:
        return preconditioning.nearest_trained(prediction, sigma)

    times = [path.sigma_inv(rounded(sigma)) for sigma in levels]
    rows = []
    for i, (t, t_next) in enumerate(zip(times, [*times[1:], 0.0], strict=True)):
        sigma = path.sigma(t)
        gamma = min(s_churn / num_steps, np.sqrt(2) - 1) if s_min <= sigma <= s_max else 0.0
        t_hat = path.sigma_inv(rounded(sigma * (1 + gamma))) if gamma else t
        h = t_next - t_hat
        # Both stages see the state at their start, which for the first has been noised from t to t_hat.
        added = np.sqrt(max(path.sigma(t_hat) ** 2 - sigma**2, 0.0))
        first = _call(process, prediction, path, t_hat, i)
        first.churn_scale = path.s(t_hat) / path.s(t)
        first.churn = added * path.s(t_hat) * s_noise
        on_x, on_x0 = _derivative(path, t_hat)
        if solver == "euler" or i == num_steps - 1:
            first.x, first.history = 1 + h * on_x, (h * on_x0,)
            rows.append(first)
            continue
        # To the point t' = t_hat + alpha h, while the anchor keeps the state with this derivative's share of the step.
        share = h * (1 - 1 / (2 * alpha))
        first.x, first.history = 1 + alpha * h * on_x, (alpha * h * on_x0,)
        first.anchor_x, first.anchor_anchor, first.anchor_history = 1 + share * on_x, 0.0, (share * on_x0,)
        second = _call(process, prediction, path, t_hat + alpha * h, i)
        on_x, on_x0 = _derivative(path, t_hat + alpha * h)
        share = h / (2 * alpha)
        second.anchor, second.x, second.history = 1.0, share * on_x, (share * on_x0,)
        rows += [first, second]
    return core.build(rows, init_noise_sigma=path.sigma(times[0]) * path.s(times[0]))


def _derivative(path: _Path, t: float) -> tuple[float, float]:
    """dx/dt as (on x, on x_0), eq. 81."""
    relative = path.sigma_deriv(t) / path.sigma(t)
    return relative + path.s_deriv(t) / path.s(t), -relative * path.s(t)


def _call(process: Process, prediction: str, path: _Path, t: float, step: int) -> core.Row:
    """A row that evaluates the network on the state at t."""
    sigma, scale = np.float64(path.sigma(t)), path.s(t)
    alpha = process.alpha_at(sigma)
    call = predictions.interface(prediction, process.time_of(sigma), alpha, sigma * alpha)
    own = alpha / scale  # from the state to the network's process
    return core.Row(
        timestep=float(call.timestep),
        step=step,
        denoise=(float(call.on_x * own), float(call.on_output)),
        input_scale=float(call.input_scale * own),
    )


def _path(schedule: str, scaling: str, beta_d: float, beta_min: float) -> _Path:
    """The columns "schedule" and "scaling" of table 1."""
    if schedule == "vp":

        def sigma(t: float) -> float:
            return preconditioning.vp_sigma(t, beta_d, beta_min)

        def sigma_deriv(t: float) -> float:
            return (beta_min + beta_d * t) * (sigma(t) + 1 / sigma(t)) / 2

        path = _Path(sigma, sigma_deriv, lambda level: preconditioning.vp_time(level, beta_d, beta_min))
    elif schedule == "ve":
        path = _Path(np.sqrt, lambda t: 0.5 / np.sqrt(t), np.square)
    else:
        path = _Path(lambda t: t, lambda t: 1.0, lambda level: level)
    if scaling == "none":
        return path

    def s(t: float) -> float:
        return 1 / np.sqrt(1 + path.sigma(t) ** 2)

    return dataclasses.replace(path, s=s, s_deriv=lambda t: -path.sigma(t) * path.sigma_deriv(t) * s(t) ** 3)


def _levels(
    discretization: str,
    num_steps: int,
    low: float,
    high: float,
    rho: float,
    epsilon_s: float,
    betas: tuple[float, float],
) -> np.ndarray:
    """Noise levels sigma_0 > ... > sigma_{N-1}, the row "time steps" of table 1."""
    if discretization == "vp":
        return preconditioning.vp_sigma(np.linspace(1, epsilon_s, num_steps), *betas)
    if discretization == "ve":
        return spacing.ratios("exponential", low, high, num_steps)
    if discretization == "edm":
        return spacing.ratios("karras", low, high, num_steps, rho)
    trained = preconditioning.iddpm_sigmas()
    trained = trained[(trained >= low) & (trained <= high)]
    return trained[np.round(np.linspace(0, len(trained) - 1, num_steps)).astype(int)]
