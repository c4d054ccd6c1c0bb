"""The schedule of a checkpoint: its samplers of any length, from any step, and what their states are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.diffusion import samplers
from diffusion_jax.diffusion.samplers import core
from diffusion_jax.diffusion.samplers.repaint import repaint_on
from diffusion_jax.hub.scheduler_options import KNOWN_OPTIONS
from diffusion_jax.hub.schedulers import load_sampler, read_config

# Short names of solvers: diffusers' class, and what its config says besides.
NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "plms": ("PNDMScheduler", {"skip_prk_steps": True}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpmpp": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_singlestep": ("DPMSolverSinglestepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
# What makes the solvers of diffusion models follow a flow's path.
_STRAIGHT: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW_NAMES: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "dpmpp": ("DPMSolverMultistepScheduler", _STRAIGHT),
    "dpmpp_sde": ("DPMSolverMultistepScheduler", _STRAIGHT | {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_singlestep": ("DPMSolverSinglestepScheduler", _STRAIGHT),
    "unipc": ("UniPCMultistepScheduler", _STRAIGHT),  # not DEIS, whose last level still has much noise here
}
# Classes that have no option steps_offset, and those that clip estimates where the file does not say.
_WITHOUT_OFFSET = (
    "DPMSolverSinglestepScheduler",
    "EDMDPMSolverMultistepScheduler",
    "EDMEulerScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler",
    "IPNDMScheduler",
)
_CLIPPING = ("DDIMScheduler", "DDPMScheduler")
# Steps of the sampler that shows whether a schedule is covered.
_PROBE = 4


class Schedule:
    """Samplers on the noise schedule that a network was trained with.

    Attributes:
      config: a scheduler config of diffusers.
    """

    def __init__(self, config: Mapping[str, Any]):
        self.config = dict(config)

    @classmethod
    def read(cls, directory: Path, solver: str | None = None) -> Schedule:
        """Of a folder with scheduler_config.json, for another solver if one is named (see `with_solver`).

        Raises ValueError for a file that cannot be read, and for a scheduler, if it is to be used, that is not covered.
        """
        return cls.of(read_config(directory), solver)

    @classmethod
    def of(cls, config: Mapping[str, Any], solver: str | None = None) -> Schedule:
        """Of the content of a scheduler_config.json, as :meth:`read`."""
        schedule = cls(config)
        schedule = schedule if solver is None else schedule.with_solver(solver)
        schedule.sampler(_PROBE)
        return schedule

    def with_solver(self, name: str) -> Schedule:
        """The same schedule for another solver, by its short name here or by its class in diffusers.

        Raises:
          ValueError: no such solver, or not for this kind of schedule.
        """
        names = FLOW_NAMES if self._flow else NAMES
        classes = {class_name: (class_name, {}) for class_name, _ in names.values()}
        if name not in names and name not in classes:
            raise ValueError(f"sampler {name!r} does not exist for this checkpoint; it can be {', '.join(names)}")
        class_name, options = (names | classes)[name]
        kept = {key: value for key, value in self.config.items() if key in KNOWN_OPTIONS}
        if self._flow:  # one factor, by two names
            kept["shift"] = kept["flow_shift"] = kept.get("shift") or kept.get("flow_shift") or 1.0
        return Schedule({**kept, **options, "_class_name": class_name})

    def corrected(self) -> Schedule:
        """As diffusers' pipelines of Stable Diffusion 1 and 2 correct the schedulers of early checkpoints.

        Whatever the file says, they count leading timesteps from 1 and clip no estimates.
        """
        config, name = dict(self.config), self.config["_class_name"]
        if name not in _WITHOUT_OFFSET:
            config["steps_offset"] = 1
        if config.get("clip_sample", name in _CLIPPING):
            config["clip_sample"] = False
        return Schedule(config)

    @property
    def solver(self) -> str:
        """The short name of the solver, or its class in diffusers where it has none."""
        asked = self.config["_class_name"]
        fitting = [
            (len(options), name)
            for name, (class_name, options) in (FLOW_NAMES if self._flow else NAMES).items()
            if class_name == asked and all(self.config.get(key) == value for key, value in options.items())
        ]
        return max(fitting)[1] if fitting else asked

    def first_step(self, num_steps: int, strength: float) -> int:
        """How many of so many steps image-to-image leaves out, which runs a share `strength` of them.

        As diffusers counts them: a flow rounds the steps that are left out down, all others those that are run.
        """
        if self._flow:
            return int(max(num_steps - num_steps * strength, 0))
        return num_steps - min(int(num_steps * strength), num_steps)

    def sampler(self, num_steps: int, first_step: int = 0, tokens: int | None = None) -> samplers.Sampler:
        """The sampler of so many steps without the first ones; raises ValueError for counts that cannot be.

        tokens: patches of the image, by which flows with use_dynamic_shifting move towards the noise; None is the
        number at which that begins.
        """
        return load_sampler(self.config, num_steps=num_steps, first_step=first_step, mu=self._mu(tokens))

    def _mu(self, tokens: int | None) -> float | None:
        """The shift of an image of so many patches, on a straight line through two of them, as Flux has it."""
        if not self.config.get("use_dynamic_shifting"):
            return None

        def option(name: str, default: float) -> float:
            value = self.config.get(name)
            return default if value is None else value

        fewest, most = option("base_image_seq_len", 256), option("max_image_seq_len", 4096)
        low, high = option("base_shift", 0.5), option("max_shift", 1.15)
        return low if tokens is None else low + (tokens - fewest) * (high - low) / (most - fewest)

    def levels(self, sampler: samplers.Sampler) -> tuple[np.ndarray, np.ndarray]:
        """(alpha, sigma) of the state x = alpha x_0 + sigma noise before each row of the sampler, float64 [rows].

        Raises:
          ValueError: a sampler that does not say, such as one of a table of one's own.
        """
        level = np.asarray(sampler.table.level, np.float64)
        if not level.any(axis=1).all():
            raise ValueError("this sampler does not say what its states are made of, so that no image can be its start")
        return level[:, 0], level[:, 1]

    def inversion(self, num_steps: int) -> samplers.Sampler:
        """From an image to the noise that DDIM turns into it: the same levels backwards (Song et al. 2021, eq. 14).

        Give the latent of the image as x_T; it counts as the state of the last level. What comes out is the state of
        the first, for a sampler of `with_solver("ddim")` and so many steps.

        Raises:
          ValueError: a flow, or a single step.
        """
        if self._flow:
            raise ValueError("DDIM inversion needs a diffusion model; this checkpoint is a flow")
        if num_steps < 2:
            raise ValueError(f"num_steps is {num_steps}; the inversion needs 2 or more")
        schedule = self.with_solver("ddim")
        forward = schedule.sampler(num_steps)
        alpha, sigma = schedule.levels(forward)
        rows = []
        for step, i in enumerate(reversed(range(1, num_steps))):
            on_x, on_output = (float(value) for value in forward.table.denoise[i])
            ratio = sigma[i - 1] / sigma[i]
            rows.append(
                core.Row(
                    timestep=float(forward.table.timestep[i]),
                    step=step,
                    denoise=(on_x, on_output),
                    x=ratio,
                    history=(alpha[i - 1] - alpha[i] * ratio,),
                )
            )
        return core.build(rows)

    def repaint(self, num_steps: int, jump_length: int = 10, resamples: int = 10) -> samplers.Sampler:
        """RePaint's walk (Lugmayr et al. 2022) on this schedule; give it to a pipeline as `sampler`, with a mask.

        Raises:
          ValueError: a flow, or counts that cannot be.
        """
        if self._flow:
            raise ValueError("RePaint needs a diffusion model; this checkpoint is a flow")
        schedule = self.with_solver("ddpm")
        base = schedule.sampler(num_steps)
        return repaint_on(base, *schedule.levels(base), jump_length=jump_length, resamples=resamples)

    @property
    def _flow(self) -> bool:
        return self.config["_class_name"].startswith("FlowMatch") or bool(self.config.get("use_flow_sigmas"))
