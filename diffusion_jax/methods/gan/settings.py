"""What a config says of a game between two networks: its sections, each a constructor that checks itself."""

from __future__ import annotations

import dataclasses

from flax import linen as nn

from diffusion_jax.methods.gan.adaptive import AdaptiveAugmentation
from diffusion_jax.methods.gan.losses import GAMES
from diffusion_jax.methods.settings import ImageEvaluation, Sampling
from diffusion_jax.models.dcgan import DCGANDiscriminator, DCGANGenerator
from diffusion_jax.models.latent_mlp import MLPDiscriminator, MLPGenerator
from diffusion_jax.models.stylegan2 import StyleGAN2Discriminator, StyleGAN2Generator
from diffusion_jax.options import Variants, check_choice, check_least, described, section

GENERATORS: dict[str, type[nn.Module]] = {
    "mlp": MLPGenerator,
    "dcgan": DCGANGenerator,
    "stylegan2": StyleGAN2Generator,
}
DISCRIMINATORS: dict[str, type[nn.Module]] = {
    "mlp": MLPDiscriminator,
    "dcgan": DCGANDiscriminator,
    "stylegan2": StyleGAN2Discriminator,
}


@described(
    game="the losses: non_saturating, wasserstein, hinge or relativistic (R3GAN)",
    class_conditional="both networks are told the classes of the data",
    r1="gamma of R1, gamma / 2 times the discriminator's squared gradient on real images; 0: none",
    r2="the same on generated images, as R3GAN; 0: none",
    gradient_penalty="factor of WGAN-GP's penalty of slopes other than 1, between real and generated images; 0: none",
    penalties_every="updates between these penalties, times as strong; 1: in every one; 16: as StyleGAN2",
    path_length="factor of StyleGAN2's path length regularisation, 2 in the paper; 0: none",
    path_length_every="updates between path length regularisations, times as strong",
    generator_every="updates of the discriminator to one of the generator, the first included; 5: as WGAN-GP",
)
@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of config.method."""

    game: str = "non_saturating"
    class_conditional: bool = False
    r1: float = 1.0
    r2: float = 0.0
    gradient_penalty: float = 0.0
    penalties_every: int = 1
    path_length: float = 0.0
    path_length_every: int = 4
    generator_every: int = 1

    def __post_init__(self) -> None:
        check_choice("game", self.game, GAMES)
        check_least(0, r1=self.r1, r2=self.r2, gradient_penalty=self.gradient_penalty, path_length=self.path_length)
        check_least(1, penalties_every=self.penalties_every, path_length_every=self.path_length_every)
        check_least(1, generator_every=self.generator_every)


@described(truncation="psi, share of the way from the mean style to an image's own; below 1: more typical, more alike")
@dataclasses.dataclass(frozen=True)
class GANSampling(Sampling):
    """The fields of config.sampling."""

    truncation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.truncation >= 0:
            raise ValueError(f"truncation is {self.truncation}; it must be 0 or more")


_FILLED = ("num_classes", "dtype")
SECTIONS = {
    "data": True,
    "method": True,
    "generator": Variants(
        GENERATORS, "mlp", ("image_size", "out_channels", *_FILLED), text="the network that draws images"
    ),
    "discriminator": Variants(DISCRIMINATORS, "mlp", _FILLED, text="the network that tells them from real ones"),
    "augmentation": section(AdaptiveAugmentation),
    "training": True,
    "optimizer": True,
    "discriminator_optimizer": "optimizer",
    "ema": True,
    "mesh": True,
    "sampling": section(GANSampling),
    "evaluation": section(ImageEvaluation),
}
