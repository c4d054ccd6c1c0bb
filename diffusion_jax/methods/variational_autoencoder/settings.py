"""What a config says of variational autoencoders: its sections, each a constructor that checks itself."""

from __future__ import annotations

import dataclasses

from flax import linen as nn

from diffusion_jax.methods.settings import LikelihoodEvaluation, Sampling
from diffusion_jax.methods.variational_autoencoder.likelihoods import LIKELIHOODS
from diffusion_jax.models.vector_autoencoder import FILLED, ConvAutoencoder, MLPAutoencoder
from diffusion_jax.options import Variants, check_choice, check_least, described, section

NETWORKS: dict[str, type[nn.Module]] = {"mlp": MLPAutoencoder, "conv": ConvAutoencoder}
DRAWS = ("mean", "sample")


@described(
    class_conditional="encoder and decoder are told the classes of the data",
    beta="weight of the KL divergence: 1 is the evidence lower bound, more orders the latents, less sharpens images",
    beta_warmup_steps="steps in which beta grows from 0, so that latents are in use before they cost",
)
@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of config.method."""

    class_conditional: bool = False
    beta: float = 1.0
    beta_warmup_steps: int = 0

    def __post_init__(self) -> None:
        check_least(0, beta=self.beta, beta_warmup_steps=self.beta_warmup_steps)


@described(
    draw="mean: the mean of what the decoder says; sample: an image drawn from it, with its noise in every pixel",
    temperature="standard deviation of the latents that are drawn; below 1: images are more typical and more alike",
)
@dataclasses.dataclass(frozen=True)
class VAESampling(Sampling):
    """The fields of config.sampling."""

    draw: str = "mean"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("draw", self.draw, DRAWS)
        check_least(0, temperature=self.temperature)


@described(
    num_likelihood_images="test images whose likelihood is bounded from below; 0: none",
    importance_samples="latents of each in the importance-weighted bound, which is the closer the more there are",
)
@dataclasses.dataclass(frozen=True)
class VAEEvaluation(LikelihoodEvaluation):
    """The fields of config.evaluation."""

    importance_samples: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(1, importance_samples=self.importance_samples)


SECTIONS = {
    "data": True,
    "method": True,
    "model": Variants(NETWORKS, "conv", FILLED, text="encoder and decoder"),
    "likelihood": Variants(LIKELIHOODS, "discretised_logistic", text="the distribution of an image, given its latent"),
    "training": True,
    "optimizer": True,
    "ema": True,
    "posthoc_ema": True,
    "mesh": True,
    "sampling": section(VAESampling),
    "evaluation": section(VAEEvaluation),
}
