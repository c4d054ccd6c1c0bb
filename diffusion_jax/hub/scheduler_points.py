"""The chain of a diffusers scheduler, and the points that its solver visits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from diffusion_jax.diffusion import preconditioning
from diffusion_jax.diffusion import process as processes
from diffusion_jax.diffusion.process import DiscreteProcess
from diffusion_jax.diffusion.samplers import grid, spacing
from diffusion_jax.hub.scheduler_options import Options

RULES = ("linspace", "leading", "trailing")
# With zero terminal SNR diffusers puts this for the last alphas_cumprod, where a solver needs a finite noise level.
_SMALLEST_ALPHAS_CUMPROD = 2.0**-24
# How far from pure noise UniPC begins on a flow, whose log-SNR is infinite there.
_FLOW_START = 1e-6


def chain(
    options: Options, *, zero_snr: bool = True, ends: tuple[float, float] = (1e-4, 0.02), schedule: str = "linear"
) -> DiscreteProcess:
    """The process that the network was trained on. zero_snr: the class has rescale_betas_zero_snr.

    ends, schedule: the defaults of beta_start and beta_end, and of beta_schedule, in this class.
    """
    count, trained = options.get("num_train_timesteps", 1000), options.get("trained_betas", None)
    start, end = options.get("beta_start", ends[0]), options.get("beta_end", ends[1])
    schedules: dict[str, Callable[[], np.ndarray]] = {
        "linear": lambda: processes.linear_betas(count, start, end),
        "scaled_linear": lambda: processes.scaled_linear_betas(count, start, end),
        "squaredcos_cap_v2": lambda: processes.cosine_betas(count),
        "sigmoid": lambda: processes.sigmoid_betas(count, start, end),
    }
    if trained is not None:
        betas = np.asarray(trained, np.float64)
    else:
        betas = options.choose("beta_schedule", schedule, schedules)()
    if zero_snr and options.get("rescale_betas_zero_snr", False):
        betas = processes.rescale_zero_terminal_snr(betas)
    return DiscreteProcess(betas)


def levels(chain: DiscreteProcess) -> np.ndarray:
    """sigma / alpha of every timestep, float64 [T], finite also at zero terminal SNR.

    The value that stands for no signal at the last timestep may be more signal than there is at the last but one, as on
    DDPM's linear chain: these levels are diffusers'.
    """
    alphas_cumprod = np.where(chain.alphas_cumprod == 0, _SMALLEST_ALPHAS_CUMPROD, chain.alphas_cumprod)
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def level_rule(options: Options, *, lu: bool = False) -> str | None:
    """The rule that places noise levels instead of timesteps, if any. lu: the class has use_lu_lambdas."""
    rules = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
    if lu:
        rules["use_lu_lambdas"] = "log_snr"
    asked = [option for option in rules if options.get(option, False)]
    if len(asked) > 1:
        raise ValueError(f"{options.name}: {' and '.join(asked)} exclude each other")
    return rules[asked[0]] if asked else None


def _by_level(options: Options, rule: str, low: float, high: float, num_steps: int) -> np.ndarray:
    """Noise levels by a rule, decreasing; sigma_min and sigma_max replace their ends, except where diffusers does not.

    Configs keep these two when the class changes, and so they count also for classes that do not name them.
    """
    if rule != "log_snr" and not (rule == "karras" and options.name == "LMSDiscreteScheduler"):
        low, high = options.get("sigma_min", low), options.get("sigma_max", high)
    return spacing.ratios(rule, low, high, num_steps)


def times_of(ratios: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The fractional timesteps at which the chain has these noise levels, above the last one that is not higher."""
    logs = np.log(table)
    low = [int(np.flatnonzero(logs <= one)[-1]) if one >= logs.min() else 0 for one in np.log(ratios)]
    low = np.minimum(low, len(table) - 2)
    share = (np.log(ratios) - logs[low]) / (logs[low + 1] - logs[low])
    return low + np.clip(share, 0, 1)


def refuse_blind(options: Options, chain: DiscreteProcess, times: np.ndarray) -> None:
    """Raises ValueError where the network's noise says nothing of x_0, as x holds nothing of it."""
    if options.prediction == "epsilon" and chain.alphas_cumprod[times[0]] == 0:
        raise ValueError(
            f"{options.name}: prediction_type 'epsilon' cannot begin at timestep {times[0]}, which with "
            "rescale_betas_zero_snr holds no signal; such networks have 'v_prediction'"
        )


def refuse_rising(options: Options, points: grid.Grid) -> None:
    """Raises ValueError where a step goes to more noise, which a draw from a posterior cannot do."""
    if (np.diff(points.ratios) > 0).any():
        raise ValueError(
            f"{options.name}: with rescale_betas_zero_snr the noise of {points.num_steps} steps rises from the first "
            "to the second; a stochastic solver needs fewer steps"
        )


def timesteps(options: Options, chain: DiscreteProcess, num_steps: int) -> np.ndarray:
    """The whole timesteps of DDPM, DDIM and PNDM, decreasing."""
    rule = options.choose("timestep_spacing", "leading", RULES)
    offset = options.get("steps_offset", 0) if rule == "leading" else 0
    return spacing.timesteps(rule, chain.num_timesteps, num_steps, offset)


def exploding(options: Options, chain: DiscreteProcess, num_steps: int, *, ends: bool = False) -> grid.Grid:
    """The points of the k-diffusion family: state x_0 + ratio noise, fractional timesteps.

    ends: the class has final_sigmas_type, interpolation_type and timestep_type; otherwise sampling ends without noise.
    """
    table = levels(chain)
    rule = options.choose("timestep_spacing", "linspace", RULES)
    if rule == "linspace":
        times = np.linspace(0, len(table) - 1, num_steps)[::-1]
    else:
        offset = options.get("steps_offset", 0) if rule == "leading" else 0
        times = spacing.timesteps(rule, len(table), num_steps, offset).astype(np.float64)
    ratios = np.interp(times, np.arange(len(table)), table)
    by_level, end = level_rule(options), 0.0
    if ends:
        end = options.choose("final_sigmas_type", "zero", {"zero": 0.0, "sigma_min": float(table[0])})
    if ends and options.choose("interpolation_type", "linear", {"linear": False, "log_linear": True}):
        # From end to end of the chain whatever the timesteps are, and one level more than there are of them.
        ratios = np.exp(np.linspace(np.log(table[-1]), np.log(table[0]), num_steps + 1))
    if by_level:
        ratios = _by_level(options, by_level, ratios[-1], ratios[0], num_steps)
        times = times_of(ratios, table)
    continuous = ends and options.choose("timestep_type", "discrete", {"discrete": False, "continuous": True})
    continuous = continuous and options.prediction == "v"  # of others diffusers leaves the timesteps as they are
    if len(ratios) > num_steps:
        if continuous:
            raise ValueError(
                f"{options.name}: interpolation_type 'log_linear' and timestep_type 'continuous' together make one "
                "call more than steps are asked for; take one of them"
            )
        ratios, end = ratios[:-1], float(ratios[-1])
    if continuous:
        times = np.log(ratios) / 4
    alpha, largest = chain.alpha_at(ratios), float(ratios.max())
    return grid.assemble(
        options.prediction,
        times,
        alpha,
        ratios * alpha,
        end=(1.0, end),
        rescaled=True,
        init_noise_sigma=float(np.hypot(largest, 1)) if rule == "leading" else largest,
        ordered=False,
    )


def preserving(
    options: Options,
    chain: DiscreteProcess,
    num_steps: int,
    *,
    to_zero: bool | None = None,
    ends_at_last: bool = False,
    lu: bool = False,
    spaced: bool = True,
    flow_shifts: bool = False,
) -> grid.Grid:
    """The points of DPM-Solver++, UniPC and DEIS: state of unit variance, whole timesteps.

    to_zero: sampling ends without noise; None is what final_sigmas_type says. Otherwise it ends at timestep 0, or with
    ends_at_last at the last of the noise levels, where these are placed by a rule. lu: the class has use_lu_lambdas,
    and with a cosine chain cuts fractional timesteps off. spaced: the class has timestep_spacing. flow_shifts: it
    places the levels of a flow as the schedulers of flows do.
    """
    if to_zero is None:
        to_zero = bool(options.choose("final_sigmas_type", "zero", {"zero": True, "sigma_min": False}))
    by_level = level_rule(options, lu=lu)
    if options.get("use_flow_sigmas", False):
        if by_level:
            raise ValueError(f"{options.name}: use_flow_sigmas and {by_level} noise levels exclude each other")
        return _straight(options, num_steps, to_zero, flow_shifts, None if ends_at_last else float(levels(chain)[0]))
    table = levels(chain)
    # The noisiest timesteps can be left out, as a cosine chain needs.
    count = len(table) - int(np.searchsorted(-np.log(table[::-1]), options.get("lambda_min_clipped", -np.inf)))
    rule = options.choose("timestep_spacing", "linspace", RULES) if spaced else "linspace"
    # One point more than there are steps; the last is the end.
    if rule == "trailing":  # the stride is that of the whole chain
        times = np.round(np.arange(count, 0, -len(table) / num_steps)).astype(np.int64) - 1
    else:
        offset = options.get("steps_offset", 0) if rule == "leading" else 0
        times = spacing.timesteps(rule, count, num_steps + 1, 0)[:-1] + offset
    if times[0] >= len(table):
        raise ValueError(f"{options.name}: steps_offset is {offset}; {num_steps} steps then visit timestep {times[0]}")
    ratios, end = table[times], float(table[0])
    if by_level:
        ratios = _by_level(options, by_level, table[0], table[-1], num_steps)
        times, end = times_of(ratios, table), float(ratios[-1]) if ends_at_last else end
        rounds = by_level in ("karras", "log_snr") and not (
            lu and options.get("beta_schedule", "") == "squaredcos_cap_v2"
        )
        times = np.round(times) if rounds else np.floor(times)
    alpha, end = chain.alpha_at(ratios), 0.0 if to_zero else end
    end_alpha = float(chain.alpha_at(np.float64(end)))
    return grid.assemble(
        options.prediction,
        times.astype(np.float64),
        alpha,
        ratios * alpha,
        end=(end_alpha, end * end_alpha),
        init_noise_sigma=1.0,
        ordered=False,
    )


def _straight(options: Options, num_steps: int, to_zero: bool, shifts: bool, end: float | None) -> grid.Grid:
    """The points on a flow's straight path, where alpha = 1 - sigma, for the solvers of diffusion models.

    end: where sampling ends unless it ends without noise; None is the last of the points. In diffusers DPM-Solver++
    takes the least noise of the chain, which a flow does not have.
    """
    total, shift = options.get("num_train_timesteps", 1000), options.get("flow_shift", 1.0)
    if shifts:
        sigma = _shifted(options, np.linspace(1, 1 / total, num_steps + 1)[:-1], shift)
        sigma = _stretched(options, sigma)
        if abs(sigma[0] - 1) < _FLOW_START:
            sigma[0] -= _FLOW_START
    else:
        sigma = (1 - np.linspace(1, 1 / total, num_steps + 1))[:0:-1].copy()
        sigma = _shifted(options, sigma, shift)
    if options.prediction != "velocity":
        raise ValueError(f"{options.name}: use_flow_sigmas needs prediction_type 'flow_prediction'")
    end = 0.0 if to_zero else float(sigma[-1]) if end is None else end
    times = np.floor(sigma * total)
    return grid.assemble("velocity", times, 1 - sigma, sigma, end=(1 - end, end), init_noise_sigma=1.0, ordered=False)


def flow(options: Options, num_steps: int) -> grid.Grid:
    """The points of the schedulers of flows: state (1 - sigma) x_0 + sigma noise, timestep sigma T."""
    options.refuse(stochastic_sampling=False)
    total, shift = options.get("num_train_timesteps", 1000), options.get("shift", 1.0)
    if options.get("use_dynamic_shifting", False):
        first, last = 1.0, 1 / total
    else:
        # diffusers shifts the training levels, takes equal steps between their ends, and shifts these again.
        first, last = shift / shift, shift / total / (1 + (shift - 1) / total)
    sigma = _stretched(options, _shifted(options, np.linspace(first, last, num_steps), shift))
    by_level = level_rule(options)
    if by_level:
        sigma = _by_level(options, by_level, sigma[-1], sigma[0], num_steps)
    points = grid.assemble("velocity", sigma * total, 1 - sigma, sigma, init_noise_sigma=1.0)
    if not options.get("invert_sigmas", False):
        return points
    # Such a network is told 1 - sigma, and its velocity points from the noise to the image.
    return dataclasses.replace(points, timesteps=(1 - sigma) * total, on_output=-points.on_output)


def _shifted(options: Options, sigma: np.ndarray, shift: float) -> np.ndarray:
    """Noise levels moved towards the noise: by a factor on sigma / (1 - sigma), fixed or by the image's size.

    Raises ValueError where the size is needed and was not given (`load_sampler`'s mu).
    """
    if options.get("use_dynamic_shifting", False):
        if options.mu is None:
            raise ValueError(f"{options.name}: use_dynamic_shifting needs mu, which follows from the image's size")
        kinds = {"exponential": np.exp(options.mu), "linear": options.mu}
        shift = float(options.choose("time_shift_type", "exponential", kinds))
    return shift * sigma / (1 + (shift - 1) * sigma)


def _stretched(options: Options, sigma: np.ndarray) -> np.ndarray:
    """Noise levels stretched so that they end at shift_terminal, where that is set."""
    terminal = options.get("shift_terminal", None)
    if terminal and sigma[-1] == 1:
        raise ValueError(f"{options.name}: shift_terminal needs 2 steps or more")
    if not terminal:
        return sigma
    scale = (1 - sigma[-1]) / (1 - terminal)  # in this order: whole timesteps are cut off what comes out
    return 1 - (1 - sigma) / scale


def edm(options: Options, num_steps: int, *, ends_at_last: bool = False) -> grid.Grid:
    """The points of Karras et al. 2022, whose networks are preconditioned for images of deviation sigma_data.

    ends_at_last: where sampling keeps some noise it ends at the last of the points, not at sigma_min, which is another
    level with a single step.
    """
    data = options.get("sigma_data", 0.5)
    low, high, rho = options.get("sigma_min", 0.002), options.get("sigma_max", 80.0), options.get("rho", 7.0)
    rule = options.choose("sigma_schedule", "karras", ("karras", "exponential"))
    to_zero = options.choose("final_sigmas_type", "zero", {"zero": True, "sigma_min": False})
    sign = options.choose("prediction_type", "epsilon", {"epsilon": 1.0, "v_prediction": -1.0})
    sigma = spacing.ratios(rule, low, high, num_steps, rho)
    if rule == "exponential" and num_steps == 1:
        sigma = np.array([low])  # where a range of one step begins in diffusers
    points = grid.assemble(
        "edm",
        sigma,
        np.ones(num_steps),
        sigma,
        end=(1.0, 0.0 if to_zero else float(sigma[-1]) if ends_at_last else low),
        init_noise_sigma=float(np.hypot(high, data)),
    )
    factors = preconditioning.edm(sigma, data)
    return dataclasses.replace(
        points, input_scale=factors.c_in, on_x=factors.c_skip, on_output=sign * np.asarray(factors.c_out)
    )
