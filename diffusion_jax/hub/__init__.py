"""Other people's checkpoints, in and out."""

from diffusion_jax.hub.checkpoint import load, save
from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.lora import add_lora, set_lora_weights
from diffusion_jax.hub.pipelines import load_pipeline
from diffusion_jax.hub.schedulers import load_sampler
from diffusion_jax.hub.textual_inversion import add_embedding
from diffusion_jax.models.scanned import scanned, unrolled

__all__ = [
    "CheckpointError",
    "add_embedding",
    "add_lora",
    "load",
    "load_pipeline",
    "load_sampler",
    "save",
    "scanned",
    "set_lora_weights",
    "unrolled",
]
