"""The networks a config can name in its ``model`` section."""

from diffusion_jax.models.dit import DiT
from diffusion_jax.models.edm2_unet import EDM2UNet
from diffusion_jax.models.edm_unet import EDMUNet
from diffusion_jax.models.encoder_decoder import EncoderDecoder
from diffusion_jax.models.mlp import MLP
from diffusion_jax.models.network import DenoisingNetwork, Network, NoisyImageClassifier
from diffusion_jax.models.segnet import SegNet
from diffusion_jax.models.unet import UNet
from diffusion_jax.models.unet_classifier import UNetClassifier

MODELS: dict[str, type[DenoisingNetwork]] = {
    "unet": UNet,
    "edm_unet": EDMUNet,
    "edm2_unet": EDM2UNet,
    "dit": DiT,
    "encoder_decoder": EncoderDecoder,
    "segnet": SegNet,
    "mlp": MLP,
}
# What tells the classes of noisy images, for guidance.
CLASSIFIERS: dict[str, type[NoisyImageClassifier]] = {"unet_classifier": UNetClassifier}
NETWORKS: dict[str, type[Network]] = {**MODELS, **CLASSIFIERS}
