"""The networks, as Flax Linen modules over channels-last arrays."""

from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.conditional_unet import ConditionalUNet
from diffusion_jax.models.controlnet import ControlNet
from diffusion_jax.models.dit import DiT
from diffusion_jax.models.edm2_unet import EDM2UNet
from diffusion_jax.models.edm_unet import EDMUNet
from diffusion_jax.models.encoder_decoder import EncoderDecoder
from diffusion_jax.models.flux import FluxTransformer
from diffusion_jax.models.mmdit import MMDiT
from diffusion_jax.models.mmdit_controlnet import MMDiTControlNet
from diffusion_jax.models.registry import MODELS
from diffusion_jax.models.segnet import SegNet
from diffusion_jax.models.tiny_autoencoder import AutoencoderTiny
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.unet_classifier import UNetClassifier
from diffusion_jax.models.vq import VQModel

__all__ = [
    "MODELS",
    "AutoencoderKL",
    "AutoencoderTiny",
    "ConditionalUNet",
    "ControlNet",
    "DiT",
    "EDM2UNet",
    "EDMUNet",
    "EncoderDecoder",
    "FluxTransformer",
    "MMDiT",
    "MMDiTControlNet",
    "SegNet",
    "UNet",
    "UNetClassifier",
    "VQModel",
]
