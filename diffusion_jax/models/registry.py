"""The networks a config can name in its ``model`` section."""

from flax import linen as nn

from diffusion_jax.models.dit import DiT
from diffusion_jax.models.edm2_unet import EDM2UNet
from diffusion_jax.models.edm_unet import EDMUNet
from diffusion_jax.models.encoder_decoder import EncoderDecoder
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.segnet import SegNet
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.unet_classifier import UNetClassifier

MODELS: dict[str, type[nn.Module]] = {
    "unet": UNet,
    "edm_unet": EDMUNet,
    "edm2_unet": EDM2UNet,
    "dit": DiT,
    "encoder_decoder": EncoderDecoder,
    "segnet": SegNet,
    "mlp": MLP,
}
# What tells the classes of noisy images, for guidance.
CLASSIFIERS: dict[str, type[nn.Module]] = {"unet_classifier": UNetClassifier}
NETWORKS = MODELS | CLASSIFIERS
