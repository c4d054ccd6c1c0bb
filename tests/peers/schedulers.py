"""Random configs of diffusers' schedulers, and the trajectories that diffusers gives for them.

diffusers computes its tables in float32. It is made to compute in float64 here, so that what differs is a difference
and not rounding; where the two precisions lead to other timesteps, the float64 ones count.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch

SHAPE = (2, 4, 5, 3)  # channels last; diffusers has them second

DISCRETE = {
    "num_train_timesteps": (1000, 1000, 1000, 100, 4000),
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
    "betas": ((1e-4, 0.02), (0.00085, 0.012), (0.0015, 0.0195), (1e-4, 0.05)),
    "prediction_type": ("epsilon", "epsilon", "v_prediction", "sample"),
    "trained_betas": (None,) * 9 + (True,),
}
SPACING = {"timestep_spacing": (None, "linspace", "leading", "trailing"), "steps_offset": (0, 0, 1)}
LEVELS = {
    "levels": (None, None, "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
    "sigma_min": (None, None, None, 0.05, 0.01),
    "sigma_max": (None, None, 10.0),
}
THRESHOLD = {
    "thresholding": (False, False, True),
    "dynamic_thresholding_ratio": (0.995, 0.8),
    "sample_max_value": (1.0, 1.5, 3.0),
}
CLIP = {"clip_sample": (None, False, True), "clip_sample_range": (1.0, 0.7)}
ZERO_SNR = {"rescale_betas_zero_snr": (False, False, True)}
FINAL = {"final_sigmas_type": ("zero", "zero", "sigma_min")}
FLOW = {"use_flow_sigmas": (False,) * 3 + (True,), "flow_shift": (1.0, 3.0)}
SOLVER = {"solver_order": (1, 2, 2, 3), "lower_order_final": (None, True, False)}
EDM = {
    "sigma_min": (0.002, 0.01),
    "sigma_max": (80.0, 20.0),
    "sigma_data": (0.5, 1.0),
    "sigma_schedule": ("karras", "exponential"),
    "rho": (7.0, 5.0),
    "prediction_type": ("epsilon", "v_prediction"),
}
SHIFTS = {
    "num_train_timesteps": (1000, 1000, 100),
    "shift": (1.0, 3.0),
    "use_dynamic_shifting": (False, True),
    "time_shift_type": ("exponential", "linear"),
    "invert_sigmas": (False,) * 5 + (True,),
    "shift_terminal": (None, None, 0.1),
    "stochastic_sampling": (False,) * 5 + (True,),
}
# What diffusers has each class choose from.
CLASSES = {
    "DDPMScheduler": DISCRETE
    | SPACING
    | CLIP
    | THRESHOLD
    | ZERO_SNR
    | {"variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "learned_range", "learned")},
    "DDIMScheduler": DISCRETE
    | SPACING
    | CLIP
    | THRESHOLD
    | ZERO_SNR
    | {"set_alpha_to_one": (None, True, False), "eta": (0.0, 0.0, 0.6, 1.0)},
    "PNDMScheduler": DISCRETE
    | SPACING
    | {"set_alpha_to_one": (None, True, False), "skip_prk_steps": (None, True, True, False)},
    "IPNDMScheduler": {"num_train_timesteps": (1000,)},
    "EulerDiscreteScheduler": DISCRETE
    | SPACING
    | LEVELS
    | ZERO_SNR
    | FINAL
    | {
        "interpolation_type": ("linear", "linear", "log_linear"),
        "timestep_type": ("discrete", "discrete", "continuous"),
    },
    "EulerAncestralDiscreteScheduler": DISCRETE | SPACING | ZERO_SNR,
    "HeunDiscreteScheduler": DISCRETE | SPACING | LEVELS | CLIP,
    "LMSDiscreteScheduler": DISCRETE | SPACING | LEVELS,
    "DPMSolverMultistepScheduler": DISCRETE
    | SPACING
    | LEVELS
    | ZERO_SNR
    | FINAL
    | FLOW
    | SOLVER
    | THRESHOLD
    | {
        "algorithm_type": ("dpmsolver++", "dpmsolver++", "sde-dpmsolver++", "deis", "dpmsolver"),
        "solver_type": ("midpoint", "heun", "bh1"),
        "euler_at_final": (False, True),
        "use_lu_lambdas": (False, False, False, True),
        "lambda_min_clipped": (-float("inf"), -5.1),
        "variance_type": (None, None, "fixed_small", "learned_range"),
    },
    "DPMSolverSinglestepScheduler": DISCRETE
    | LEVELS
    | FINAL
    | FLOW
    | SOLVER
    | THRESHOLD
    | {
        "algorithm_type": ("dpmsolver++", "dpmsolver++", "dpmsolver"),
        "solver_type": ("midpoint", "midpoint", "heun"),
        "lambda_min_clipped": (-float("inf"), -5.1),
        "variance_type": (None, None, "fixed_small", "learned_range"),
    },
    "UniPCMultistepScheduler": DISCRETE
    | SPACING
    | LEVELS
    | ZERO_SNR
    | FINAL
    | FLOW
    | SOLVER
    | THRESHOLD
    | {
        "solver_type": ("bh2", "bh1", "midpoint"),
        "predict_x0": (True, True, True, False),
        "disable_corrector": ([], [], [0], [0, 1, 2]),
        "shift_terminal": (None, None, None, 0.1),
    },
    "DEISMultistepScheduler": DISCRETE | SPACING | LEVELS | FLOW | SOLVER | THRESHOLD,
    "FlowMatchEulerDiscreteScheduler": SHIFTS | LEVELS,
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": (1000, 100), "shift": (1.0, 3.0)},
    "EDMEulerScheduler": EDM | FINAL,
    "EDMDPMSolverMultistepScheduler": EDM
    | FINAL
    | SOLVER
    | THRESHOLD
    | {"algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "solver_type": ("midpoint", "heun")},
    "LCMScheduler": DISCRETE
    | CLIP
    | THRESHOLD
    | ZERO_SNR
    | {"original_inference_steps": (50, 40), "timestep_scaling": (10.0, 1.0)},
}
STEPS = (1, 2, 3, 4, 5, 7, 10, 14, 15, 20, 25, 28, 30, 50)


def draw(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(config, how it is run: the arguments of `hub.load_sampler`) of a case."""
    rng = np.random.default_rng(seed)

    def choose(values: Any) -> Any:
        return values[rng.integers(len(values))]

    name = choose(tuple(CLASSES))
    # Half of the options are left out, so that defaults are compared too and options do not bury one another.
    config = {"_class_name": name}
    for option, values in CLASSES[name].items():
        value = choose(values)
        if rng.random() < 0.5 and value is not None:
            config[option] = value
    if betas := config.pop("betas", None):
        config["beta_start"], config["beta_end"] = betas
    if config.get("num_train_timesteps") == 4000 and config.get("beta_end") == 0.05:
        config["beta_end"] = 0.02  # nothing is left of the image, and rounding grows without bound
    if (config.get("algorithm_type"), config.get("solver_order")) == ("sde-dpmsolver++", 3):
        config["solver_order"] = 2  # of the third order we take k-diffusion's formula, see hub/schedulers.py
    if levels := config.pop("levels", None):
        config[levels] = True
    if config.get("use_flow_sigmas"):
        config["prediction_type"] = "flow_prediction"
    if config.pop("trained_betas", None):
        count = config.get("num_train_timesteps", 1000)
        config["trained_betas"] = (np.linspace(0.01, 0.13, count) ** 2 * 1000 / count).tolist()
    run = {"eta": config.pop("eta", 0.0), "num_steps": int(choose(STEPS)), "first_step": 0}
    if rng.random() < 0.35:
        run["first_step"] = int(rng.integers(run["num_steps"]))
    if config.get("use_dynamic_shifting"):
        run["mu"] = float(rng.uniform(0.3, 1.3))
    return config, run


@contextlib.contextmanager
def double() -> Iterator[None]:
    """float32 means float64, in torch and in NumPy."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch, "float32", torch.float64), mock.patch.object(np, "float32", np.float64):
            yield
    finally:
        torch.set_default_dtype(before)


def network(xp: Any, x: Any, t: Any, axis: int, with_variance: bool) -> Any:
    """A closed form of NumPy, JAX or torch that is no linear function, with the channels of a variance if asked for."""
    phase = t / 1000 * 6.283185307179586
    output = xp.tanh(0.7 * x + 0.3 * xp.sin(phase) - 0.05)
    if not with_variance:
        return output
    return xp.concatenate([output, xp.sin(1.3 * x + phase)], axis)


def doubled(config: dict) -> bool:
    """Whether the network has channels for a variance."""
    return config.get("variance_type") in ("learned", "learned_range")


def theirs(config: dict, run: dict, x: np.ndarray, noises: np.ndarray) -> np.ndarray:
    """States of diffusers, channels last, [1 + calls, ...]: before the first call and after each."""
    name = config["_class_name"]
    scheduler = getattr(diffusers, name).from_config(config)
    scheduler.set_timesteps(run["num_steps"], **({"mu": run["mu"]} if "mu" in run else {}))
    begin = run["first_step"] * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    module = importlib.import_module(type(scheduler).__module__)
    drawn = iter(noises)
    state = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
    states = [x]
    arguments = {"eta": run["eta"]} if run["eta"] else {}

    def unit(*_: Any, **__: Any) -> torch.Tensor:
        return torch.from_numpy(np.moveaxis(next(drawn), -1, 1).copy())

    with (
        mock.patch.object(module, "randn_tensor", unit) if hasattr(module, "randn_tensor") else contextlib.nullcontext()
    ):
        for t in scheduler.timesteps[begin:]:
            scaled = scheduler.scale_model_input(state, t) if hasattr(scheduler, "scale_model_input") else state
            output = network(torch, scaled, t, 1, doubled(config))
            state = scheduler.step(output, t, state, **arguments).prev_sample
            states.append(np.moveaxis(state.numpy(), 1, -1))
    return np.stack(states)
