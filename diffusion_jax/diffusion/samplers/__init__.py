"""Samplers: each solver is a function that computes a table, and `sample` runs any of them."""

from collections.abc import Callable

from diffusion_jax.diffusion.samplers.adaptive import AdaptiveSampler, adaptive
from diffusion_jax.diffusion.samplers.ancestral import ddpm
from diffusion_jax.diffusion.samplers.core import Row, Sampler, build
from diffusion_jax.diffusion.samplers.ddim import ddim, ddim_inversion
from diffusion_jax.diffusion.samplers.deis import deis
from diffusion_jax.diffusion.samplers.dpmpp import dpmpp, dpmpp_sde
from diffusion_jax.diffusion.samplers.dpmpp_singlestep import dpmpp_singlestep
from diffusion_jax.diffusion.samplers.edm import edm, edm_ablation
from diffusion_jax.diffusion.samplers.euler import euler, euler_ancestral
from diffusion_jax.diffusion.samplers.heun import heun
from diffusion_jax.diffusion.samplers.lms import lms
from diffusion_jax.diffusion.samplers.pndm import ipndm, plms, pndm
from diffusion_jax.diffusion.samplers.predictor_corrector import PredictorCorrector, predictor_corrector
from diffusion_jax.diffusion.samplers.running import (
    Run,
    State,
    Stepper,
    advance,
    begin,
    finish,
    frames_kept,
    initial_noise,
    sample,
)
from diffusion_jax.diffusion.samplers.sde import sde
from diffusion_jax.diffusion.samplers.unipc import unipc

# A config's `sampling.name` picks one of these; the other fields of the section are its arguments.
SAMPLERS: dict[str, Callable[..., Sampler | AdaptiveSampler | PredictorCorrector]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "edm": edm,
    "edm_ablation": edm_ablation,
    "lms": lms,
    "plms": plms,
    "pndm": pndm,
    "ipndm": ipndm,
    "deis": deis,
    "dpmpp": dpmpp,
    "dpmpp_sde": dpmpp_sde,
    "dpmpp_singlestep": dpmpp_singlestep,
    "unipc": unipc,
    "predictor_corrector": predictor_corrector,
    "sde": sde,
    "adaptive": adaptive,
}

__all__ = [
    "SAMPLERS",
    "AdaptiveSampler",
    "PredictorCorrector",
    "Row",
    "Run",
    "Sampler",
    "State",
    "Stepper",
    "adaptive",
    "advance",
    "begin",
    "build",
    "ddim",
    "ddim_inversion",
    "ddpm",
    "deis",
    "dpmpp",
    "dpmpp_sde",
    "dpmpp_singlestep",
    "edm",
    "edm_ablation",
    "euler",
    "euler_ancestral",
    "finish",
    "frames_kept",
    "heun",
    "initial_noise",
    "ipndm",
    "lms",
    "plms",
    "pndm",
    "predictor_corrector",
    "sample",
    "sde",
    "unipc",
]
