"""Other people's checkpoints, in and out."""

from diffusion_jax.hub.checkpoint import load, save
from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.pipelines import load_pipeline
from diffusion_jax.hub.schedulers import load_sampler

__all__ = ["CheckpointError", "load", "load_pipeline", "load_sampler", "save"]
