"""Samplers: each solver is a function that computes a table, and `sample` runs any of them."""

from collections.abc import Callable

from diffusion_jax.diffusion.samplers.ancestral import ddpm
from diffusion_jax.diffusion.samplers.core import Row, Sampler, build, initial_noise, sample
from diffusion_jax.diffusion.samplers.ddim import ddim

# A config's `sampling.name` picks one of these; the other fields of the section are its arguments.
SAMPLERS: dict[str, Callable[..., Sampler]] = {"ddpm": ddpm, "ddim": ddim}

__all__ = ["SAMPLERS", "Row", "Sampler", "build", "ddim", "ddpm", "initial_noise", "sample"]
