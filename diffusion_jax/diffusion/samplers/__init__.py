"""Samplers: each solver is a function that computes a table, and `sample` runs any of them."""

from collections.abc import Callable

from diffusion_jax.diffusion.samplers.ancestral import ddpm
from diffusion_jax.diffusion.samplers.core import Row, Sampler, build, frames_kept, initial_noise, sample
from diffusion_jax.diffusion.samplers.ddim import ddim
from diffusion_jax.diffusion.samplers.deis import deis
from diffusion_jax.diffusion.samplers.dpmpp import dpmpp, dpmpp_sde
from diffusion_jax.diffusion.samplers.dpmpp_singlestep import dpmpp_singlestep
from diffusion_jax.diffusion.samplers.edm import edm, edm_ablation
from diffusion_jax.diffusion.samplers.euler import euler, euler_ancestral
from diffusion_jax.diffusion.samplers.heun import heun
from diffusion_jax.diffusion.samplers.lms import lms
from diffusion_jax.diffusion.samplers.pndm import ipndm, plms
from diffusion_jax.diffusion.samplers.unipc import unipc

# A config's `sampling.name` picks one of these; the other fields of the section are its arguments.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "edm": edm,
    "edm_ablation": edm_ablation,
    "lms": lms,
    "plms": plms,
    "ipndm": ipndm,
    "deis": deis,
    "dpmpp": dpmpp,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_singlestep": dpmpp_singlestep,
    "unipc": unipc,
}

__all__ = ["SAMPLERS", "Row", "Sampler", "build", "frames_kept", "initial_noise", "sample", *SAMPLERS]
