"""The samplers that diffusers' scheduler configs describe.

A scheduler of diffusers fixes three things: the timesteps and noise levels that it visits, what the network's output
means there, and the solver. The first two become a `Grid`, the third is one of our own solvers.

An option that changes the result and is not supported raises ValueError, and so does one that no scheduler has.
Published configs carry options of other schedulers than their own; these are ignored, as diffusers ignores them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.diffusion import samplers
from diffusion_jax.diffusion.samplers import core, grid, multistep
from diffusion_jax.diffusion.samplers.ancestral import ddpm_on
from diffusion_jax.diffusion.samplers.ddim import ddim_between
from diffusion_jax.diffusion.samplers.deis import deis_on
from diffusion_jax.diffusion.samplers.dpmpp import dpmpp_on
from diffusion_jax.diffusion.samplers.dpmpp_singlestep import dpmpp_singlestep_on
from diffusion_jax.diffusion.samplers.euler import euler_ancestral_on, euler_on
from diffusion_jax.diffusion.samplers.heun import heun_on
from diffusion_jax.diffusion.samplers.lms import lms_on
from diffusion_jax.diffusion.samplers.pndm import ipndm_on
from diffusion_jax.diffusion.samplers.unipc import unipc_on
from diffusion_jax.hub import scheduler_points as points
from diffusion_jax.hub.files import LONGEST, nearest, read_object
from diffusion_jax.hub.lcm import lcm
from diffusion_jax.hub.pndm import pndm
from diffusion_jax.hub.scheduler_options import Options
from diffusion_jax.readers import one_line


def load_sampler(
    source: str | os.PathLike[str] | Mapping[str, Any],
    num_steps: int = 50,
    eta: float = 0.0,
    first_step: int = 0,
    mu: float | None = None,
) -> samplers.Sampler:
    """The sampler of a diffusers scheduler: its timesteps, the scale of its state and of x_T, and its steps.

    Args:
      source: a scheduler_config.json, the folder that holds it, or its content; `_class_name` names the scheduler.
      num_steps: what diffusers calls num_inference_steps.
      eta: share of the posterior's noise, for DDIM; an argument of its step, not a part of its config.
      first_step: where to begin, as image-to-image does: so many of the steps are left out.
      mu: of schedulers with use_dynamic_shifting, the shift that follows from the size of the image.

    Raises:
      ValueError: a file that cannot be read, or a scheduler or an option of it that is not supported; it is named.
    """
    config = source if isinstance(source, Mapping) else read_config(Path(source))
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in _SCHEDULERS:
        raise ValueError(
            f"scheduler {name!r:.60} is not supported; there are, among others, {nearest(name, _SCHEDULERS)}"
        )
    if eta and name not in _WITH_ETA:
        raise ValueError(f"{name} has no eta")
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be 1 or more")
    if not 0 <= first_step < num_steps:
        raise ValueError(f"first_step is {first_step}; it can be 0 to {num_steps - 1}")
    try:
        options = Options(config, first_step, mu)
        if name in _WITH_ETA:
            return _ddim(options, num_steps, eta).after(first_step)
        return _SCHEDULERS[name](options, num_steps)
    except ValueError as error:
        raise ValueError(one_line(error, LONGEST)) from None
    except Exception as error:  # options of any type and size arrive at NumPy
        raise ValueError(f"{name}: options that cannot be ({type(error).__name__}: {one_line(error)})") from None


def read_config(path: Path) -> Mapping[str, Any]:
    """The content of a scheduler_config.json, or of the one in a folder. Raises ValueError where it cannot be read."""
    file = path / "scheduler_config.json" if path.is_dir() else path
    return read_object(file)


# --- The schedulers. --------------------------------------------------------------------------------------------


def _ddpm(options: Options, num_steps: int) -> core.Sampler:
    names = ("fixed_small", "fixed_large", "learned_range")
    variances = {**{name: name for name in names}, "fixed_small_log": "fixed_small"}
    chain = points.chain(options)
    times = points.timesteps(options, chain, num_steps)
    points.refuse_blind(options, chain, times)
    sampler = ddpm_on(
        chain,
        times,
        options.prediction,
        variance=options.choose("variance_type", "fixed_small", variances),
        clip=options.clip(default=True),
        # what is added last is the noise of the step, unless it starts at the clean end
        noise_at_end=bool(times[-1] > 0),
    )
    return dataclasses.replace(sampler, threshold=options.threshold).after(options.first_step)


def _ddim(options: Options, num_steps: int, eta: float = 0.0) -> core.Sampler:
    """Each step lands T // S timesteps lower, which with some counts is not the timestep that comes next."""
    chain = points.chain(options)
    times = points.timesteps(options, chain, num_steps)
    points.refuse_blind(options, chain, times)
    final = 1.0 if options.get("set_alpha_to_one", True) else float(chain.alphas_cumprod[0])
    landing = times - chain.num_timesteps // num_steps
    return ddim_between(
        times,
        chain.alphas_cumprod[times],
        np.where(landing >= 0, chain.alphas_cumprod[landing], final),
        options.prediction,
        eta=eta,
        clip=options.clip(default=True),
        threshold=options.threshold,
    )


def _ipndm(options: Options, num_steps: int) -> core.Sampler:
    """v-diffusion's: the network's output is v, and its timestep the angle between image and noise, from 0 to 1."""
    options.refuse(trained_betas=None)
    sigma = np.sin(np.linspace(1, 0, num_steps + 1)[:-1] * np.pi / 2) ** 2
    alpha = np.sqrt(1 - sigma**2)
    visited = grid.assemble("v", np.arctan2(sigma, alpha) * 2 / np.pi, alpha, sigma, init_noise_sigma=1.0)
    if options.first_step:
        return ipndm_on(visited.after(options.first_step))
    # At the first point nothing is left of the image: there diffusers takes 0 for x_0, not what v says. Without an
    # estimate any alpha will do, and 1 can be divided by.
    start = {"alpha": 1.0, "on_x": 0.0, "on_output": 0.0}
    columns = {name: np.append(first, getattr(visited, name)[1:]) for name, first in start.items()}
    sampler = ipndm_on(dataclasses.replace(visited, **columns))
    level = np.stack([alpha, sigma], axis=-1)
    return dataclasses.replace(sampler, table=sampler.table._replace(level=level))


def _euler(options: Options, num_steps: int) -> core.Sampler:
    return euler_on(points.exploding(options, points.chain(options), num_steps, ends=True).after(options.first_step))


def _euler_ancestral(options: Options, num_steps: int) -> core.Sampler:
    visited = points.exploding(options, points.chain(options), num_steps).after(options.first_step)
    points.refuse_rising(options, visited)
    return euler_ancestral_on(visited)


def _heun(options: Options, num_steps: int) -> core.Sampler:
    chain = points.chain(options, zero_snr=False, ends=(0.00085, 0.012))
    return heun_on(
        points.exploding(options, chain, num_steps).after(options.first_step), clip=options.clip(default=False)
    )


def _lms(options: Options, num_steps: int) -> core.Sampler:
    visited = points.exploding(options, points.chain(options, zero_snr=False), num_steps)
    return lms_on(visited, begun=options.first_step)


# Configs of one multistep solver are read by the others; diffusers takes its default for the names it does not have.
_DPM_TYPES = {"midpoint": "midpoint", "heun": "heun", "logrho": "midpoint", "bh1": "midpoint", "bh2": "midpoint"}
_UNIPC_TYPES = {"bh1": "bh1", "bh2": "bh2", "midpoint": "bh2", "heun": "bh2", "logrho": "bh2"}


def _tapers(options: Options, num_steps: int) -> bool:
    """Whether the order falls at the end: a matter of the whole run, also of one that begins in the middle."""
    return options.get("lower_order_final", True) and num_steps < multistep.FEW_STEPS


def _dpmpp_with(options: Options, visited: grid.Grid, num_steps: int) -> core.Sampler:
    """The third order of the SDE is k-diffusion's; in diffusers a term of it has the other sign."""
    kinds = {"dpmsolver++": False, "deis": False, "sde-dpmsolver++": True}
    stochastic = options.choose("algorithm_type", "dpmsolver++", kinds)
    if stochastic:
        points.refuse_rising(options, visited)
    sampler = dpmpp_on(
        visited,
        options.get("solver_order", 2),
        options.choose("solver_type", "midpoint", _DPM_TYPES),
        stochastic,
        _tapers(options, num_steps),
        options.get("euler_at_final", False),
    )
    return dataclasses.replace(sampler, threshold=options.threshold)


def _dpmpp(options: Options, num_steps: int) -> core.Sampler:
    visited = points.preserving(options, points.chain(options), num_steps, lu=True)
    sampler = _dpmpp_with(options, visited.after(options.first_step), num_steps)
    return dataclasses.replace(sampler, learned_variance=options.has_variance_channels())


def _dpmpp_singlestep(options: Options, num_steps: int) -> core.Sampler:
    options.choose("algorithm_type", "dpmsolver++", ("dpmsolver++", "deis"))
    options.choose("solver_type", "midpoint", ("midpoint", "logrho", "bh1", "bh2"))
    order, chain = options.get("solver_order", 2), points.chain(options, zero_snr=False)
    visited = points.preserving(options, chain, num_steps, spaced=False)
    to_zero = options.choose("final_sigmas_type", "zero", {"zero": True, "sigma_min": False})
    # diffusers sets it where the steps would not fit or the end needs it
    lower = options.get("lower_order_final", False) or bool(num_steps % order) or to_zero
    sampler = dpmpp_singlestep_on(visited, order, lower, begun=options.first_step)
    return dataclasses.replace(sampler, threshold=options.threshold, learned_variance=options.has_variance_channels())


def _unipc(options: Options, num_steps: int) -> core.Sampler:
    options.refuse(predict_x0=True, solver_p=None)
    sampler = unipc_on(
        points.preserving(options, points.chain(options), num_steps, ends_at_last=True, flow_shifts=True).after(
            options.first_step
        ),
        options.get("solver_order", 2),
        options.choose("solver_type", "bh2", _UNIPC_TYPES),
        options.get("lower_order_final", True),
        # counted from the first step of the whole run
        [step - options.first_step for step in options.get("disable_corrector", [])],
    )
    return dataclasses.replace(sampler, threshold=options.threshold)


def _deis(options: Options, num_steps: int) -> core.Sampler:
    options.choose("algorithm_type", "deis", ("deis", "dpmsolver", "dpmsolver++"))
    options.choose("solver_type", "logrho", ("logrho", "midpoint", "heun", "bh1", "bh2"))
    chain = points.chain(options, zero_snr=False)
    visited = points.preserving(options, chain, num_steps, to_zero=False, ends_at_last=True).after(options.first_step)
    sampler = deis_on(visited, options.get("solver_order", 2), _tapers(options, num_steps))
    return dataclasses.replace(sampler, threshold=options.threshold)


def _flow_euler(options: Options, num_steps: int) -> core.Sampler:
    return euler_on(points.flow(options, num_steps).after(options.first_step))


def _flow_heun(options: Options, num_steps: int) -> core.Sampler:
    return heun_on(points.flow(options, num_steps).after(options.first_step))


def _edm_euler(options: Options, num_steps: int) -> core.Sampler:
    return euler_on(points.edm(options, num_steps, ends_at_last=True).after(options.first_step))


def _edm_dpmpp(options: Options, num_steps: int) -> core.Sampler:
    return _dpmpp_with(options, points.edm(options, num_steps).after(options.first_step), num_steps)


_WITH_ETA = ("DDIMScheduler", "DDIMParallelScheduler")
_SCHEDULERS: dict[str, Callable[[Options, int], core.Sampler]] = {
    "DDPMScheduler": _ddpm,
    "DDPMParallelScheduler": _ddpm,  # the Parallel ones differ in what they do for several timesteps at once
    "DDIMScheduler": _ddim,
    "DDIMParallelScheduler": _ddim,
    "PNDMScheduler": pndm,
    "IPNDMScheduler": _ipndm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "HeunDiscreteScheduler": _heun,
    "LMSDiscreteScheduler": _lms,
    "DPMSolverMultistepScheduler": _dpmpp,
    "DPMSolverSinglestepScheduler": _dpmpp_singlestep,
    "UniPCMultistepScheduler": _unipc,
    "DEISMultistepScheduler": _deis,
    "FlowMatchEulerDiscreteScheduler": _flow_euler,
    "FlowMatchHeunDiscreteScheduler": _flow_heun,
    "LCMScheduler": lcm,
    "EDMEulerScheduler": _edm_euler,
    "EDMDPMSolverMultistepScheduler": _edm_dpmpp,
}
