"""The samplers that diffusers' scheduler configs describe.

A scheduler of diffusers fixes three things: the timesteps and noise levels that it visits, what the network's output
means there, and the solver. The first two become a `Grid`, the third is one of our own solvers.
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
from diffusion_jax.diffusion.samplers.pndm import plms_on
from diffusion_jax.diffusion.samplers.unipc import unipc_on

_PREDICTIONS = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}
_BETAS: dict[str, Callable[..., np.ndarray]] = {
    "linear": processes.linear_betas,
    "scaled_linear": processes.scaled_linear_betas,
    "sigmoid": processes.sigmoid_betas,
}


class _Options:
    """A config whose every field must be asked for, so that none is ignored."""

    def __init__(self, config: Mapping[str, Any]):
        self.name = config["_class_name"]
        self._left = {key: value for key, value in config.items() if not key.startswith("_")}

    def take(self, field: str, default: Any = None) -> Any:
        """The value of a field, which is thereby known."""
        return self._left.pop(field, default)

    def peek(self, field: str, default: Any) -> Any:
        """The value of a field that will be taken later."""
        return self._left.get(field, default)

    def choose(self, field: str, choices: Mapping[str, Any], default: str) -> Any:
        """The meaning of a field that has so many values."""
        value = self.take(field, default)
        if value not in choices:
            raise ValueError(f"{self.name}: {field} is {value!r}; it can be {', '.join(map(str, choices))}")
        return choices[value]

    def refuse(self, **without_effect: Any) -> None:
        """Fields that are supported at one value only: the one that switches them off."""
        for field, off in without_effect.items():
            value = self.take(field, off)
            if value != off:
                raise ValueError(f"{self.name}: {field} is {value!r}; only {off!r} is supported")

    def finish(self, *irrelevant: str) -> None:
        """Raises ValueError for what nobody asked for; `irrelevant` only matters to what is refused already."""
        unknown = [field for field in self._left if field not in irrelevant]
        if unknown:
            raise ValueError(f"{self.name}: unknown options {', '.join(unknown)}")


def load_sampler(
    source: str | os.PathLike[str] | Mapping[str, Any], num_steps: int = 50, eta: float = 0.0
) -> samplers.Sampler:
    """The sampler of a diffusers scheduler.

    Args:
      source: a scheduler_config.json, the folder that holds it, or its content.
      num_steps: what diffusers calls num_inference_steps.
      eta: share of the posterior's noise, for DDIM; an argument of its step, not a part of its config.

    Raises:
      ValueError: a scheduler, or an option of it, that is not supported; it is named.
      FileNotFoundError: there is no such file.
    """
    config = source if isinstance(source, Mapping) else _read(Path(source))
    name = config.get("_class_name")
    if name not in _SCHEDULERS:
        raise ValueError(f"scheduler {name!r} is not supported; there are {', '.join(_SCHEDULERS)}")
    if eta and name != "DDIMScheduler":
        raise ValueError(f"{name} has no eta")
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be 1 or more")
    options = _Options(config)
    return _ddim(options, num_steps, eta) if name == "DDIMScheduler" else _SCHEDULERS[name](options, num_steps)


def _read(path: Path) -> Mapping[str, Any]:
    return json.loads((path / "scheduler_config.json" if path.is_dir() else path).read_text(encoding="utf-8"))


def _chain(options: _Options) -> DiscreteProcess:
    """The discrete process that the network was trained on."""
    count = options.take("num_train_timesteps", 1000)
    start, end = options.take("beta_start", 1e-4), options.take("beta_end", 0.02)
    schedule, trained = options.take("beta_schedule", "linear"), options.take("trained_betas")
    if trained is not None:
        betas = np.asarray(trained, np.float64)
    elif schedule == "squaredcos_cap_v2":
        betas = processes.cosine_betas(count)
    elif schedule in _BETAS:
        betas = _BETAS[schedule](count, start, end)
    else:
        raise ValueError(
            f"{options.name}: beta_schedule is {schedule!r}; it can be {', '.join(_BETAS)}, squaredcos_cap_v2"
        )
    if options.take("rescale_betas_zero_snr", False):
        betas = processes.rescale_zero_terminal_snr(betas)
    return DiscreteProcess(betas)


def _clip(options: _Options) -> float | None:
    bound = options.take("clip_sample_range", 1.0)
    options.refuse(thresholding=False)
    return bound if options.take("clip_sample", False) else None


def _ancestral(options: _Options, num_steps: int) -> samplers.Sampler:
    chain, prediction, clip = (
        _chain(options),
        options.choose("prediction_type", _PREDICTIONS, "epsilon"),
        _clip(options),
    )
    choices = {name: name for name in ("fixed_small", "fixed_large", "learned_range")}
    variance = options.choose("variance_type", {**choices, "fixed_small_log": "fixed_small"}, "fixed_small")
    rule, offset = _rule(options)
    options.finish("dynamic_thresholding_ratio", "sample_max_value")
    return samplers.ddpm(chain, prediction, num_steps, spacing_rule=rule, offset=offset, variance=variance, clip=clip)


def _ddim(options: _Options, num_steps: int, eta: float) -> samplers.Sampler:
    chain, prediction, clip = (
        _chain(options),
        options.choose("prediction_type", _PREDICTIONS, "epsilon"),
        _clip(options),
    )
    final = 1.0 if options.take("set_alpha_to_one", True) else float(chain.alphas_cumprod[0])
    rule, offset = _rule(options)
    if rule == "linspace":
        raise ValueError(
            "DDIMScheduler: timestep_spacing 'linspace' steps to timesteps that it does not visit; take 'trailing'"
        )
    options.finish("dynamic_thresholding_ratio", "sample_max_value")
    return samplers.ddim(
        chain, prediction, num_steps, spacing_rule=rule, offset=offset, eta=eta, clip=clip, final_alpha_cumprod=final
    )


def _rule(options: _Options) -> tuple[str, int]:
    rule = options.choose("timestep_spacing", {r: r for r in ("leading", "trailing", "linspace")}, "leading")
    offset = options.take("steps_offset", 0)
    return rule, offset if rule == "leading" else 0


@dataclasses.dataclass(frozen=True)
class _Visited:
    """The points of a sigma-based scheduler: told timesteps, and noise levels sigma / alpha, float64 [N]."""

    timesteps: np.ndarray
    ratios: np.ndarray


def _visited(
    options: _Options, chain: DiscreteProcess, num_steps: int, *, rounded: bool, ends_included: bool
) -> _Visited:
    """Where a scheduler on a discrete chain calls the network.

    rounded: timesteps are whole numbers. ends_included: the linspace rule ends at 0; otherwise it has S + 1 points, of
    which the last is left out.
    """
    rule = options.choose("timestep_spacing", {r: r for r in ("leading", "trailing", "linspace")}, "linspace")
    offset = options.take("steps_offset", 0)
    total = chain.num_timesteps
    if rule == "linspace":
        times = np.linspace(0, total - 1, num_steps if ends_included else num_steps + 1)[::-1]
        times = times if ends_included else times[:-1]
        times = np.round(times) if rounded else times
    elif rule == "leading":
        stride = total // (num_steps if ends_included else num_steps + 1)
        times = np.arange(num_steps + (not ends_included))[::-1][:num_steps] * float(stride) + offset
    else:
        times = np.round(np.arange(total, 0, -total / num_steps)[:num_steps]) - 1
    ratios = np.interp(times, np.arange(total), chain.ratios)
    rules = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
    asked = [rules[field] for field in rules if options.take(field, False)]
    if asked:
        low, high = (ratios[-1], ratios[0]) if ends_included else (chain.ratios[0], chain.ratios[-1])
        ratios = spacing.ratios(asked[0], low, high, num_steps)
        times = chain.time_of(ratios)
        times = np.round(times) if rounded else times
    return _Visited(times, ratios)


def _end(options: _Options, chain: DiscreteProcess) -> float:
    """The noise level at which sampling ends."""
    return options.choose("final_sigmas_type", {"zero": 0.0, "sigma_min": float(chain.ratios[0])}, "zero")


def _preserving(visited: _Visited, prediction: str, end: float) -> grid.Grid:
    """A grid whose state keeps unit variance."""
    alpha = 1 / np.sqrt(1 + visited.ratios**2)
    last = 1 / np.sqrt(1 + end**2)
    return grid.assemble(
        prediction, visited.timesteps, alpha, visited.ratios * alpha, end=(last, end * last), init_noise_sigma=1.0
    )


def _exploding(visited: _Visited, prediction: str, end: float, init_noise_sigma: float) -> grid.Grid:
    """A grid whose state is x_0 + ratio noise, as in k-diffusion."""
    alpha = 1 / np.sqrt(1 + visited.ratios**2)
    return grid.assemble(
        prediction,
        visited.timesteps,
        alpha,
        visited.ratios * alpha,
        end=(1.0, end),
        rescaled=True,
        init_noise_sigma=init_noise_sigma,
    )


def _k_diffusion(solver: Callable[[grid.Grid], core.Sampler], ends: bool) -> Callable[[_Options, int], core.Sampler]:
    def load(options: _Options, num_steps: int) -> core.Sampler:
        chain, prediction = _chain(options), options.choose("prediction_type", _PREDICTIONS, "epsilon")
        leading = options.peek("timestep_spacing", "linspace") == "leading"
        visited = _visited(options, chain, num_steps, rounded=False, ends_included=True)
        end = _end(options, chain) if ends else 0.0
        options.refuse(
            interpolation_type="linear", timestep_type="discrete", sigma_min=None, sigma_max=None, clip_sample=False
        )
        options.finish("clip_sample_range")
        largest = float(visited.ratios.max())
        return solver(_exploding(visited, prediction, end, float(np.hypot(largest, 1)) if leading else largest))

    return load


def _multistep_options(options: _Options) -> int:
    """Refuses what the exponential integrators do not support here; the order."""
    options.refuse(
        thresholding=False,
        use_flow_sigmas=False,
        use_lu_lambdas=False,
        use_dynamic_shifting=False,
        euler_at_final=False,
        lambda_min_clipped=-np.inf,
        variance_type=None,
        solver_p=None,
        disable_corrector=[],
        predict_x0=True,
        sigma_min=None,
        sigma_max=None,
        shift_terminal=None,
    )
    return options.take("solver_order", 2)


_IRRELEVANT = ("dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type")


def _dpmpp(options: _Options, num_steps: int) -> core.Sampler:
    chain, prediction = _chain(options), options.choose("prediction_type", _PREDICTIONS, "epsilon")
    stochastic = options.choose("algorithm_type", {"dpmsolver++": False, "sde-dpmsolver++": True}, "dpmsolver++")
    order = _multistep_options(options)
    variant = options.choose("solver_type", {"midpoint": "midpoint", "heun": "heun"}, "midpoint")
    taper = options.take("lower_order_final", True)
    points = _preserving(
        _visited(options, chain, num_steps, rounded=True, ends_included=False), prediction, _end(options, chain)
    )
    options.finish(*_IRRELEVANT)
    return dpmpp_on(points, order, variant, stochastic=stochastic, lower_order_final=taper)


def _dpmpp_singlestep(options: _Options, num_steps: int) -> core.Sampler:
    chain, prediction = _chain(options), options.choose("prediction_type", _PREDICTIONS, "epsilon")
    options.refuse(algorithm_type="dpmsolver++", solver_type="midpoint")
    order, taper = _multistep_options(options), options.take("lower_order_final", True)
    points = _preserving(
        _visited(options, chain, num_steps, rounded=True, ends_included=False), prediction, _end(options, chain)
    )
    options.finish(*_IRRELEVANT)
    return dpmpp_singlestep_on(points, order, taper)


def _unipc(options: _Options, num_steps: int) -> core.Sampler:
    chain, prediction = _chain(options), options.choose("prediction_type", _PREDICTIONS, "epsilon")
    order, taper = _multistep_options(options), options.take("lower_order_final", True)
    variant = options.choose("solver_type", {"bh1": "bh1", "bh2": "bh2"}, "bh2")
    points = _preserving(
        _visited(options, chain, num_steps, rounded=True, ends_included=False), prediction, _end(options, chain)
    )
    options.finish(*_IRRELEVANT)
    return unipc_on(points, order, variant, taper)


def _deis(options: _Options, num_steps: int) -> core.Sampler:
    chain, prediction = _chain(options), options.choose("prediction_type", _PREDICTIONS, "epsilon")
    options.refuse(algorithm_type="deis", solver_type="logrho")
    order, taper = _multistep_options(options), options.take("lower_order_final", True)
    visited = _visited(options, chain, num_steps, rounded=True, ends_included=False)
    options.finish(*_IRRELEVANT)
    return deis_on(_preserving(visited, prediction, float(chain.ratios[0])), order, taper)


def _plms(options: _Options, num_steps: int) -> core.Sampler:
    chain, prediction = _chain(options), options.choose("prediction_type", _PREDICTIONS, "epsilon")
    if not options.take("skip_prk_steps", False):
        raise ValueError("PNDMScheduler: only skip_prk_steps=True (PLMS) is supported")
    final = 1.0 if options.take("set_alpha_to_one", False) else float(chain.alphas_cumprod[0])
    rule, offset = _rule(options)
    options.finish()
    times = spacing.timesteps(rule, chain.num_timesteps, num_steps, offset)
    points = grid.assemble(
        prediction,
        times.astype(np.float64),
        np.asarray(chain.alpha(times)),
        np.asarray(chain.sigma(times)),
        end=(np.sqrt(final), np.sqrt(1 - final)),
        init_noise_sigma=1.0,
    )
    return plms_on(points)


def _flow_euler(options: _Options, num_steps: int) -> core.Sampler:
    total, shift = options.take("num_train_timesteps", 1000), options.take("shift", 1.0)
    options.refuse(
        use_dynamic_shifting=False,
        use_karras_sigmas=False,
        use_exponential_sigmas=False,
        use_beta_sigmas=False,
        invert_sigmas=False,
        shift_terminal=None,
        stochastic_sampling=False,
    )
    options.finish("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len", "time_shift_type")

    def shifted(sigma: np.ndarray) -> np.ndarray:
        return shift * sigma / (1 + (shift - 1) * sigma)

    # diffusers shifts the training levels, takes equal steps between their ends, and shifts these again.
    first, last = shifted(np.array([1.0, 1 / total]))
    sigma = shifted(np.linspace(first, last, num_steps))
    return euler_on(grid.assemble("velocity", sigma * total, 1 - sigma, sigma, init_noise_sigma=1.0))


def _edm_points(options: _Options, num_steps: int) -> grid.Grid:
    options.take("num_train_timesteps")
    low, high, rho = options.take("sigma_min", 0.002), options.take("sigma_max", 80.0), options.take("rho", 7.0)
    options.refuse(sigma_data=0.5, prediction_type="epsilon")
    rule = options.choose("sigma_schedule", {"karras": "karras", "exponential": "exponential"}, "karras")
    end = options.choose("final_sigmas_type", {"zero": 0.0, "sigma_min": low}, "zero")
    sigma = spacing.ratios(rule, low, high, num_steps, rho)
    start = float(np.hypot(high, 1))
    return grid.assemble("edm", sigma, np.ones(num_steps), sigma, end=(1.0, end), init_noise_sigma=start)


def _edm_euler(options: _Options, num_steps: int) -> core.Sampler:
    points = _edm_points(options, num_steps)
    options.finish()
    return euler_on(points)


def _edm_dpmpp(options: _Options, num_steps: int) -> core.Sampler:
    points = _edm_points(options, num_steps)
    stochastic = options.choose("algorithm_type", {"dpmsolver++": False, "sde-dpmsolver++": True}, "dpmsolver++")
    order, taper = _multistep_options(options), options.take("lower_order_final", True)
    variant = options.choose("solver_type", {"midpoint": "midpoint", "heun": "heun"}, "midpoint")
    options.finish(*_IRRELEVANT)
    return dpmpp_on(points, order, variant, stochastic=stochastic, lower_order_final=taper)


_SCHEDULERS: dict[str, Any] = {
    "DDPMScheduler": _ancestral,
    "DDIMScheduler": _ddim,
    "PNDMScheduler": _plms,
    "EulerDiscreteScheduler": _k_diffusion(euler_on, ends=True),
    "EulerAncestralDiscreteScheduler": _k_diffusion(euler_ancestral_on, ends=False),
    "HeunDiscreteScheduler": _k_diffusion(heun_on, ends=False),
    "LMSDiscreteScheduler": _k_diffusion(lms_on, ends=False),
    "DPMSolverMultistepScheduler": _dpmpp,
    "DPMSolverSinglestepScheduler": _dpmpp_singlestep,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "EDMEulerScheduler": _edm_euler,
    "EDMDPMSolverMultistepScheduler": _edm_dpmpp,
}
