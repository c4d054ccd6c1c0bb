"""The samplers that diffusers' scheduler configs describe.

A scheduler of diffusers fixes three things: the timesteps and noise levels that it visits, what the network's output
means there, and the solver. The first two become a `Grid`, the third is one of our own solvers.

An option that changes the result and is not supported raises ValueError, and so does one that no scheduler has.
Published configs carry options of other schedulers than their own; these are ignored, as diffusers ignores them.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.diffusion import process as processes
from diffusion_jax.diffusion import samplers
from diffusion_jax.diffusion.process import DiscreteProcess
from diffusion_jax.diffusion.samplers import core, grid, spacing
from diffusion_jax.diffusion.samplers.deis import deis_on
from diffusion_jax.diffusion.samplers.dpmpp import dpmpp_on
from diffusion_jax.diffusion.samplers.dpmpp_singlestep import dpmpp_singlestep_on
from diffusion_jax.diffusion.samplers.euler import euler_ancestral_on, euler_on
from diffusion_jax.diffusion.samplers.heun import heun_on
from diffusion_jax.diffusion.samplers.lms import lms_on
from diffusion_jax.diffusion.samplers.pndm import ipndm_on, plms_on, pndm_on, warmup_times
from diffusion_jax.diffusion.samplers.unipc import unipc_on
from diffusion_jax.hub.scheduler_options import Options

_RULES = ("linspace", "leading", "trailing")
# With zero terminal SNR diffusers puts this for the last alphas_cumprod, where a solver needs a finite noise level.
_SMALLEST_ALPHAS_CUMPROD = 2.0**-24


def load_sampler(
    source: str | os.PathLike[str] | Mapping[str, Any], num_steps: int = 50, eta: float = 0.0, first_step: int = 0
) -> samplers.Sampler:
    """The sampler of a diffusers scheduler: its timesteps, the scale of its state and of x_T, and its steps.

    Args:
      source: a scheduler_config.json, the folder that holds it, or its content; `_class_name` names the scheduler.
      num_steps: what diffusers calls num_inference_steps.
      eta: share of the posterior's noise, for DDIM; an argument of its step, not a part of its config.
      first_step: where to begin, as image-to-image does: so many of the steps are left out.

    Raises:
      ValueError: a file that cannot be read, or a scheduler or an option of it that is not supported; it is named.
    """
    config = source if isinstance(source, Mapping) else _read(Path(source))
    name = config.get("_class_name")
    if name not in _SCHEDULERS:
        raise ValueError(f"scheduler {name!r} is not supported; there are {', '.join(_SCHEDULERS)}")
    if eta and name not in _WITH_ETA:
        raise ValueError(f"{name} has no eta")
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be 1 or more")
    if not 0 <= first_step < num_steps:
        raise ValueError(f"first_step is {first_step}; it can be 0 to {num_steps - 1}")
    options = Options(config, first_step)
    if name in _WITH_ETA:
        return _ddim(options, num_steps, eta).after(first_step)
    return _SCHEDULERS[name](options, num_steps)


def _read(path: Path) -> Mapping[str, Any]:
    file = path / "scheduler_config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: no readable scheduler config: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file}: a scheduler config is a JSON object, got {type(config).__name__}")
    return config


# --- The chain, and the points that a scheduler visits. ---------------------------------------------------------


def _chain(options: Options, *, zero_snr: bool = True, ends: tuple[float, float] = (1e-4, 0.02)) -> DiscreteProcess:
    """The process that the network was trained on. zero_snr: the class has rescale_betas_zero_snr."""
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
        betas = options.choose("beta_schedule", "linear", schedules)()
    if zero_snr and options.get("rescale_betas_zero_snr", False):
        betas = processes.rescale_zero_terminal_snr(betas)
    return DiscreteProcess(betas)


def _levels(chain: DiscreteProcess) -> np.ndarray:
    """sigma / alpha of every timestep, float64 [T], finite also at zero terminal SNR."""
    alphas_cumprod = np.maximum(chain.alphas_cumprod, _SMALLEST_ALPHAS_CUMPROD)
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def _level_rule(options: Options, *, lu: bool = False) -> str | None:
    """The rule that places noise levels instead of timesteps, if any. lu: the class has use_lu_lambdas."""
    rules = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
    if lu:
        rules["use_lu_lambdas"] = "log_snr"
    asked = [option for option in rules if options.get(option, False)]
    if len(asked) > 1:
        raise ValueError(f"{options.name}: {' and '.join(asked)} exclude each other")
    return rules[asked[0]] if asked else None


def _times_of(ratios: np.ndarray, table: np.ndarray) -> np.ndarray:
    """The fractional timesteps at which the chain has these noise levels."""
    return np.interp(np.log(ratios), np.log(table), np.arange(len(table)))


def _exploding(options: Options, chain: DiscreteProcess, num_steps: int, *, ends: bool = False) -> grid.Grid:
    """The points of the k-diffusion family: state x_0 + ratio noise, fractional timesteps.

    ends: the class has final_sigmas_type, sigma_min and sigma_max; otherwise sampling ends without noise.
    """
    table = _levels(chain)
    rule = options.choose("timestep_spacing", "linspace", _RULES)
    if rule == "linspace":
        times = np.linspace(len(table) - 1, 0, num_steps)
    else:
        offset = options.get("steps_offset", 0) if rule == "leading" else 0
        times = spacing.timesteps(rule, len(table), num_steps, offset).astype(np.float64)
    ratios = np.interp(times, np.arange(len(table)), table)
    level_rule, end = _level_rule(options), 0.0
    low, high = ratios[-1], ratios[0]
    if ends:
        low, high = options.get("sigma_min", low), options.get("sigma_max", high)
        end = options.choose("final_sigmas_type", "zero", {"zero": 0.0, "sigma_min": float(table[0])})
    if level_rule:
        ratios = spacing.ratios(level_rule, low, high, num_steps)
        times = _times_of(ratios, table)
    alpha, largest = chain.alpha_at(ratios), float(ratios.max())
    return grid.assemble(
        options.prediction,
        times,
        alpha,
        ratios * alpha,
        end=(1.0, end),
        rescaled=True,
        init_noise_sigma=float(np.hypot(largest, 1)) if rule == "leading" else largest,
    ).after(options.first_step)


def _preserving(
    options: Options,
    chain: DiscreteProcess,
    num_steps: int,
    *,
    to_zero: bool,
    lu: bool = False,
    spaced: bool = True,
) -> grid.Grid:
    """The points of DPM-Solver++, UniPC and DEIS: state of unit variance, whole timesteps.

    to_zero: sampling ends without noise, not at timestep 0. lu: the class has use_lu_lambdas, and with a cosine chain
    cuts fractional timesteps off. spaced: the class has timestep_spacing.
    """
    options.refuse(thresholding=False, use_flow_sigmas=False, use_dynamic_shifting=False)
    table = _levels(chain)
    # The noisiest timesteps can be left out, as a cosine chain needs.
    count = len(table) - int(np.searchsorted(-np.log(table[::-1]), options.get("lambda_min_clipped", -np.inf)))
    rule = options.choose("timestep_spacing", "linspace", _RULES) if spaced else "linspace"
    # One point more than there are steps; the last is the end.
    if rule == "trailing":
        times = spacing.timesteps("trailing", count, num_steps)
    else:
        offset = options.get("steps_offset", 0) if rule == "leading" else 0
        times = spacing.timesteps(rule, count, num_steps + 1, 0)[:-1] + offset
    if times[0] >= len(table):
        raise ValueError(f"{options.name}: steps_offset is {offset}; {num_steps} steps then visit timestep {times[0]}")
    ratios, end = table[times], float(table[0])
    level_rule = _level_rule(options, lu=lu)
    if level_rule:
        ratios = spacing.ratios(
            level_rule, options.get("sigma_min", table[0]), options.get("sigma_max", table[-1]), num_steps
        )
        times, end = _times_of(ratios, table), float(min(end, ratios[-1]))
        rounds = level_rule in ("karras", "log_snr") and not (
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
    ).after(options.first_step)


def _ends_without_noise(options: Options) -> bool:
    return options.choose("final_sigmas_type", "zero", {"zero": True, "sigma_min": False})


# --- The schedulers. --------------------------------------------------------------------------------------------


def _rule(options: Options) -> tuple[str, int]:
    rule = options.choose("timestep_spacing", "leading", _RULES)
    return rule, options.get("steps_offset", 0) if rule == "leading" else 0


def _clip(options: Options, default: bool) -> float | None:
    return options.get("clip_sample_range", 1.0) if options.get("clip_sample", default) else None


def _ddpm(options: Options, num_steps: int) -> core.Sampler:
    options.refuse(thresholding=False)
    names = ("fixed_small", "fixed_large", "learned_range")
    variances = {**{name: name for name in names}, "fixed_small_log": "fixed_small"}
    rule, offset = _rule(options)
    return samplers.ddpm(
        _chain(options),
        options.prediction,
        num_steps,
        spacing_rule=rule,
        offset=offset,
        variance=options.choose("variance_type", "fixed_small", variances),
        clip=_clip(options, True),
    ).after(options.first_step)


def _ddim(options: Options, num_steps: int, eta: float = 0.0) -> core.Sampler:
    options.refuse(thresholding=False)
    chain = _chain(options)
    rule, offset = _rule(options)
    if rule == "linspace":
        raise ValueError(
            "DDIMScheduler: timestep_spacing 'linspace' steps to timesteps that it does not visit; take 'trailing'"
        )
    return samplers.ddim(
        chain,
        options.prediction,
        num_steps,
        spacing_rule=rule,
        offset=offset,
        eta=eta,
        clip=_clip(options, True),
        final_alpha_cumprod=1.0 if options.get("set_alpha_to_one", True) else float(chain.alphas_cumprod[0]),
    )


def _pndm(options: Options, num_steps: int) -> core.Sampler:
    # v would be averaged over timesteps as it is, not as the noise that it stands for.
    options.refuse(prediction_type="epsilon")
    chain = _chain(options, zero_snr=False)
    rule, offset = _rule(options)
    if rule == "linspace" or (rule == "trailing" and chain.num_timesteps % num_steps):
        raise ValueError(
            f"PNDMScheduler: timestep_spacing {rule!r} steps to timesteps that it does not visit; take 'leading'"
        )
    times = spacing.timesteps(rule, chain.num_timesteps, num_steps, offset)[options.first_step :]
    final = 1.0 if options.get("set_alpha_to_one", False) else float(chain.alphas_cumprod[0])

    def at(visited: np.ndarray) -> grid.Grid:
        return grid.assemble(
            options.prediction,
            visited.astype(np.float64),
            np.asarray(chain.alpha(visited)),
            np.asarray(chain.sigma(visited)),
            end=(np.sqrt(final), np.sqrt(1 - final)),
            init_noise_sigma=1.0,
        )

    if options.get("skip_prk_steps", False):
        return plms_on(at(times))
    return pndm_on(at(times), at(warmup_times(times, chain.num_timesteps // num_steps)))


def _ipndm(options: Options, num_steps: int) -> core.Sampler:
    """v-diffusion's: the network's output is v, and its timestep the angle between image and noise, from 0 to 1."""
    options.refuse(trained_betas=None)
    sigma = np.sin(np.linspace(1, 0, num_steps + 1)[:-1] * np.pi / 2) ** 2
    alpha = np.sqrt(1 - sigma**2)
    points = grid.assemble("v", np.arctan2(sigma, alpha) * 2 / np.pi, alpha, sigma, init_noise_sigma=1.0)
    # At the first point nothing is left of the image: there diffusers takes 0 for x_0, not what v says. Without an
    # estimate any alpha will do, and 1 can be divided by.
    start = {"alpha": 1.0, "on_x": 0.0, "on_output": 0.0}
    columns = {name: np.append(first, getattr(points, name)[1:]) for name, first in start.items()}
    return ipndm_on(dataclasses.replace(points, **columns).after(options.first_step))


def _euler(options: Options, num_steps: int) -> core.Sampler:
    options.refuse(interpolation_type="linear", timestep_type="discrete")
    return euler_on(_exploding(options, _chain(options), num_steps, ends=True))


def _euler_ancestral(options: Options, num_steps: int) -> core.Sampler:
    return euler_ancestral_on(_exploding(options, _chain(options), num_steps))


def _heun(options: Options, num_steps: int) -> core.Sampler:
    chain = _chain(options, zero_snr=False, ends=(0.00085, 0.012))
    return heun_on(_exploding(options, chain, num_steps), clip=_clip(options, False))


def _lms(options: Options, num_steps: int) -> core.Sampler:
    return lms_on(_exploding(options, _chain(options, zero_snr=False), num_steps))


# Configs of one multistep solver are read by the others; diffusers takes its default for the names it does not have.
_DPM_TYPES = {"midpoint": "midpoint", "heun": "heun", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}
_UNIPC_TYPES = {"bh1": "bh1", "bh2": "bh2", "midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}


def _dpmpp_with(options: Options, points: grid.Grid) -> core.Sampler:
    """The third order of the SDE is k-diffusion's; in diffusers a term of it has the other sign."""
    return dpmpp_on(
        points,
        options.get("solver_order", 2),
        options.choose("solver_type", "midpoint", _DPM_TYPES),
        options.choose("algorithm_type", "dpmsolver++", {"dpmsolver++": False, "deis": False, "sde-dpmsolver++": True}),
        options.get("lower_order_final", True),
        options.get("euler_at_final", False),
    )


def _dpmpp(options: Options, num_steps: int) -> core.Sampler:
    options.refuse(variance_type=None)
    to_zero = _ends_without_noise(options)
    return _dpmpp_with(options, _preserving(options, _chain(options), num_steps, to_zero=to_zero, lu=True))


def _dpmpp_singlestep(options: Options, num_steps: int) -> core.Sampler:
    options.refuse(variance_type=None)
    options.choose("algorithm_type", "dpmsolver++", ("dpmsolver++", "deis"))
    options.choose("solver_type", "midpoint", ("midpoint", "logrho", "bh1", "bh2"))
    order, to_zero = options.get("solver_order", 2), _ends_without_noise(options)
    chain = _chain(options, zero_snr=False)
    points = _preserving(options, chain, num_steps, to_zero=to_zero, spaced=False)
    return dpmpp_singlestep_on(points, order, options.get("lower_order_final", False))


def _unipc(options: Options, num_steps: int) -> core.Sampler:
    options.refuse(predict_x0=True, disable_corrector=[], solver_p=None, shift_terminal=None)
    return unipc_on(
        _preserving(options, _chain(options), num_steps, to_zero=_ends_without_noise(options)),
        options.get("solver_order", 2),
        options.choose("solver_type", "bh2", _UNIPC_TYPES),
        options.get("lower_order_final", True),
    )


def _deis(options: Options, num_steps: int) -> core.Sampler:
    options.choose("algorithm_type", "deis", ("deis", "dpmsolver", "dpmsolver++"))
    options.choose("solver_type", "logrho", ("logrho", "midpoint", "heun", "bh1", "bh2"))
    points = _preserving(options, _chain(options, zero_snr=False), num_steps, to_zero=False)
    return deis_on(points, options.get("solver_order", 2), options.get("lower_order_final", True))


def _flow_points(options: Options, num_steps: int) -> grid.Grid:
    options.refuse(use_dynamic_shifting=False, invert_sigmas=False, stochastic_sampling=False)
    total, shift = options.get("num_train_timesteps", 1000), options.get("shift", 1.0)

    def shifted(sigma: np.ndarray) -> np.ndarray:
        return shift * sigma / (1 + (shift - 1) * sigma)

    # diffusers shifts the training levels, takes equal steps between their ends, and shifts these again.
    first, last = shifted(np.array([1.0, 1 / total]))
    sigma = shifted(np.linspace(first, last, num_steps))
    terminal, level_rule = options.get("shift_terminal", None), _level_rule(options)
    if terminal:
        sigma = 1 - (1 - sigma) * (1 - terminal) / (1 - sigma[-1])
    if level_rule:
        sigma = spacing.ratios(level_rule, sigma[-1], sigma[0], num_steps)
    return grid.assemble("velocity", sigma * total, 1 - sigma, sigma, init_noise_sigma=1.0).after(options.first_step)


def _edm_points(options: Options, num_steps: int) -> grid.Grid:
    options.refuse(sigma_data=0.5, prediction_type="epsilon")
    low, high, rho = options.get("sigma_min", 0.002), options.get("sigma_max", 80.0), options.get("rho", 7.0)
    rule = options.choose("sigma_schedule", "karras", ("karras", "exponential"))
    end = options.choose("final_sigmas_type", "zero", {"zero": 0.0, "sigma_min": low})
    sigma = spacing.ratios(rule, low, high, num_steps, rho)
    start = float(np.hypot(high, 1))
    return grid.assemble("edm", sigma, np.ones(num_steps), sigma, end=(1.0, end), init_noise_sigma=start).after(
        options.first_step
    )


def _edm_dpmpp(options: Options, num_steps: int) -> core.Sampler:
    options.refuse(thresholding=False)
    return _dpmpp_with(options, _edm_points(options, num_steps))


_WITH_ETA = ("DDIMScheduler", "DDIMParallelScheduler")
_SCHEDULERS: dict[str, Callable[[Options, int], core.Sampler]] = {
    "DDPMScheduler": _ddpm,
    "DDPMParallelScheduler": _ddpm,  # the Parallel ones differ in what they do for several timesteps at once
    "DDIMScheduler": _ddim,
    "DDIMParallelScheduler": _ddim,
    "PNDMScheduler": _pndm,
    "IPNDMScheduler": _ipndm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "HeunDiscreteScheduler": _heun,
    "LMSDiscreteScheduler": _lms,
    "DPMSolverMultistepScheduler": _dpmpp,
    "DPMSolverSinglestepScheduler": _dpmpp_singlestep,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
    "FlowMatchEulerDiscreteScheduler": lambda options, num_steps: euler_on(_flow_points(options, num_steps)),
    "FlowMatchHeunDiscreteScheduler": lambda options, num_steps: heun_on(_flow_points(options, num_steps)),
    "EDMEulerScheduler": lambda options, num_steps: euler_on(_edm_points(options, num_steps)),
    "EDMDPMSolverMultistepScheduler": _edm_dpmpp,
}
