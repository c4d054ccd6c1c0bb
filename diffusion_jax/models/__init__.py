"""The networks, as Flax Linen modules over channels-last arrays."""

from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.unet import UNet

__all__ = ["MODELS", "UNet"]
