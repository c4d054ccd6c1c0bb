"""Random configs of diffusers' schedulers, and trajectories by both sides with the same network and noise."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch

from diffusion_jax.diffusion.samplers import Sampler

# What each option can be; a case takes those that the scheduler's constructor has.
OPTIONS: dict[str, tuple[Any, ...]] = {
    "num_train_timesteps": (1000, 1000, 1000, 400, 4000),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"),
    "beta_start": (1e-4, 0.00085),
    "beta_end": (0.012, 0.02, 0.05),
    "trained_betas": (None,),
    "prediction_type": ("epsilon", "epsilon", "v_prediction", "sample"),
    "timestep_spacing": ("linspace", "leading", "trailing"),
    "steps_offset": (0, 1),
    "rescale_betas_zero_snr": (False, False, True),
    "clip_sample": (False, True),
    "clip_sample_range": (1.0, 2.0),
    "thresholding": (False, False, False, True),
    "sample_max_value": (1.0, 1.5),
    "dynamic_thresholding_ratio": (0.995, 0.9),
    "set_alpha_to_one": (False, True),
    "skip_prk_steps": (False, True),
    "variance_type": ("fixed_small", "fixed_large", "fixed_small_log"),
    "use_karras_sigmas": (False, False, True),
    "use_exponential_sigmas": (False, False, True),
    "use_beta_sigmas": (False, False, True),
    "use_lu_lambdas": (False, False, True),
    "final_sigmas_type": ("zero", "sigma_min"),
    "solver_order": (1, 2, 2, 3),
    "solver_type": ("midpoint", "heun", "bh1", "bh2", "logrho"),
    "algorithm_type": ("dpmsolver++", "dpmsolver++", "sde-dpmsolver++"),
    "lower_order_final": (True, False),
    "euler_at_final": (False, True),
    "lambda_min_clipped": (-float("inf"), -5.1),
    "shift": (1.0, 3.0),
    "use_dynamic_shifting": (False,),
    "shift_terminal": (None, 0.1),
    "invert_sigmas": (False, False, True),
    "sigma_data": (0.5, 1.0),
    "sigma_schedule": ("karras", "exponential"),
    "rho": (7.0, 5.0),
}
EXCLUSIVE = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")
CLASSES = (
    *("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"),
    *("HeunDiscreteScheduler", "LMSDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("UniPCMultistepScheduler", "DEISMultistepScheduler", "FlowMatchEulerDiscreteScheduler"),
    *("FlowMatchHeunDiscreteScheduler", "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "LCMScheduler"),
    "IPNDMScheduler",
)
_TYPES = {
    "DPMSolverMultistepScheduler": ("midpoint", "heun"),
    "EDMDPMSolverMultistepScheduler": ("midpoint", "heun"),
    "DPMSolverSinglestepScheduler": ("midpoint", "heun"),
    "UniPCMultistepScheduler": ("bh1", "bh2"),
    "DEISMultistepScheduler": ("logrho",),
}
_ALGORITHMS = {"DEISMultistepScheduler": ("deis",), "DPMSolverSinglestepScheduler": ("dpmsolver++",)}


def draw(seed: int) -> tuple[dict[str, Any], int, float]:
    """(config, number of steps, strength) of a case."""
    rng = random.Random(seed)
    name = CLASSES[seed % len(CLASSES)]
    known = inspect.signature(getattr(diffusers, name).__init__).parameters
    config: dict[str, Any] = {"_class_name": name}
    for option, values in OPTIONS.items():
        values = {"solver_type": _TYPES, "algorithm_type": _ALGORITHMS}.get(option, {}).get(name, values)
        if option in known and rng.random() < 0.6:
            config[option] = rng.choice(values)
    if config.get("num_train_timesteps") == 4000 and config.get("beta_end") == 0.05:
        config["beta_end"] = 0.02  # no signal is left in float32, in which diffusers' tables are
    asked = [option for option in EXCLUSIVE if config.get(option)]
    for option in rng.sample(asked, max(len(asked) - 1, 0)):
        config[option] = False
    if config.get("algorithm_type") == "sde-dpmsolver++" and config.get("solver_order") == 3:
        config["solver_order"] = 2  # of the third order we take k-diffusion's formula, see hub/schedulers.py
    if name.startswith("FlowMatchHeun"):
        config.pop("num_train_timesteps", None)
    num_steps = rng.choice((1, 2, 3, 4, 5, 7, 10, 14, 15, 20, 25, 28, 30, 50))
    return config, num_steps, rng.choice((1.0, 1.0, 0.6, 0.8, 0.35))


def toy_network(x: np.ndarray, t: float) -> np.ndarray:
    return np.tanh(0.7 * x + 0.3 * np.sin(t / 1000 * 2 * np.pi) - 0.05)


def theirs(
    config: dict[str, Any], num_steps: int, first_step: int, x: np.ndarray, noise: np.ndarray
) -> tuple[list[float], np.ndarray]:
    """(timesteps, the states before and after every call [calls + 1, ...]) of diffusers, begun at `first_step`."""
    scheduler = getattr(diffusers, config["_class_name"])(**{k: v for k, v in config.items() if k[0] != "_"})
    scheduler.set_timesteps(num_steps)
    # Its tables are float32; at least what is computed from them is not.
    for table in ("sigmas", "alphas_cumprod", "final_alpha_cumprod"):
        if isinstance(getattr(scheduler, table, None), torch.Tensor):
            setattr(scheduler, table, getattr(scheduler, table).to(torch.float64))
    order = scheduler.order
    timesteps = scheduler.timesteps[first_step * order :]
    if first_step and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first_step * order)
    state, states, step = torch.from_numpy(x), [x], [0]
    module = importlib.import_module(type(scheduler).__module__)
    draws: Callable[..., torch.Tensor] = lambda *a, **k: torch.from_numpy(noise[step[0] // order])  # noqa: E731
    replaced = mock.patch.object(module, "randn_tensor", draws) if hasattr(module, "randn_tensor") else None
    with replaced or contextlib.nullcontext():
        for i, t in enumerate(timesteps):
            step[0] = i
            seen = scheduler.scale_model_input(state, t) if hasattr(scheduler, "scale_model_input") else state
            output = torch.from_numpy(toy_network(seen.numpy(), float(t)))
            state = scheduler.step(output, t, state).prev_sample.to(torch.float64)
            states.append(state.numpy())
    return [float(t) for t in timesteps], np.stack(states)


def ours(sampler: Sampler, x: np.ndarray, noise: np.ndarray) -> tuple[list[float], np.ndarray]:
    """The same of a table, row by row in float64 NumPy: what `samplers.sample` computes without compiling it."""
    table, states = sampler.table, [x]
    order = table.next_x.shape[1] - 3
    anchor, history = x, [np.zeros_like(x)] * order
    for i in range(sampler.num_evaluations):
        output = toy_network(table.input_scale[i] * x, float(table.timestep[i]))
        raw = table.denoise[i, 0] * x + table.denoise[i, 1] * output
        denoised = np.asarray(sampler.bounded(raw))
        history = [table.estimate[i, 0] * x + table.estimate[i, 1] * denoised, *history][:order]
        registers = [x, anchor, raw, *history]
        following = sum(w * r for w, r in zip(table.next_x[i], registers, strict=True))
        anchor = sum(w * r for w, r in zip(table.next_anchor[i], registers, strict=True))
        x = following + table.noise[i] * noise[table.step[i]]
        states.append(x)
    return [float(t) for t in table.timestep], np.stack(states)
