"""Other people's checkpoints, in and out."""

from diffusion_jax.hub.checkpoint import load, save
from diffusion_jax.hub.files import CheckpointError

__all__ = ["CheckpointError", "load", "save"]
