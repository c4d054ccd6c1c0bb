"""The networks a config can name in its ``model`` section."""

from flax import linen as nn

from diffusion_jax.models.dit import DiT
from diffusion_jax.models.edm_unet import EDMUNet
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.unet import UNet

MODELS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "edm_unet": EDMUNet,
    "dit": DiT,
    "mlp": MLP,
}
