"""Variational autoencoders: an image is drawn from a latent, and a bound of its likelihood is what is trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from diffusion_jax import readers
from diffusion_jax.data.sources import LATENT_SOURCES
from diffusion_jax.methods import latent_walk
from diffusion_jax.methods.method import Config, Context, Method, Run
from diffusion_jax.methods.variational_autoencoder import likelihood, showing
from diffusion_jax.methods.variational_autoencoder.likelihoods import Likelihood
from diffusion_jax.methods.variational_autoencoder.model import VariationalAutoencoder
from diffusion_jax.methods.variational_autoencoder.settings import SECTIONS, Settings

# Test images and latents of each for the bounds of a quick run.
_QUICK = {"num_likelihood_images": 32, "importance_samples": 4}


class VariationalAutoencoderMethod(Method):
    """See `Method`; the model is a `VariationalAutoencoder`."""

    settings = Settings
    sections = SECTIONS
    shows: ClassVar = (latent_walk.PICTURE, showing.RECONSTRUCTIONS, showing.PLANE)

    def check(self, config: Config) -> None:
        if config.data.name in LATENT_SOURCES:
            raise ValueError(
                f"config.method.name is {config.method.name!r}, which is of images, and config.data.name "
                f"{config.data.name!r}, which is of latents"
            )

    def shrink(self, config: Config) -> None:
        for field, most in _QUICK.items():
            config.evaluation[field] = min(config.evaluation[field], most)

    def needs_labels(self, config: Config) -> str | None:
        return "config.method.class_conditional is True" if config.method.class_conditional else None

    def build(self, config: Config, context: Context) -> VariationalAutoencoder:
        shape = (config.data.image_size, config.data.image_size, config.data.channels)
        num_classes = context.num_classes if config.method.class_conditional else None
        with config.likelihood.errors():
            distribution: Likelihood = config.likelihood.build()
        with config.model.errors():
            network: Any = config.model.build(
                out_channels=distribution.num_outputs * shape[-1],
                image_shape=shape,
                free_shape=distribution.free_shape(shape),
                num_classes=num_classes,
                dtype=config.training.compute_dtype,
            )
            network.validate(config.data.image_size, config.data.channels)
        return VariationalAutoencoder(
            network=network,
            likelihood=distribution,
            image_shape=shape,
            latent_size=network.latent_size,
            num_classes=num_classes,
            beta=config.method.beta,
            beta_warmup_steps=config.method.beta_warmup_steps,
            draws=config.sampling.draw,
        )

    def given(self, run: Run) -> dict[str, Any]:
        return {"temperature": np.float32(run.config.sampling.temperature)}

    def drawn(self, run: Run) -> dict[str, Any]:
        return {"network_evaluations_per_image": 1, **self.protocol(run)}

    def protocol(self, run: Run) -> dict[str, Any]:
        return {"draw": run.config.sampling.draw, "temperature": run.config.sampling.temperature}

    def pictures(self, run: Run, labels: np.ndarray | None, frames: np.ndarray, captions: Sequence[str]) -> None:
        showing.write_pictures(run, labels, frames, captions)

    def scores(self, run: Run) -> dict[str, Any]:
        return likelihood.of_test_images(run) if run.config.evaluation.num_likelihood_images else {}

    def summary(self, run: Run, drawn: Mapping[str, Any]) -> tuple[str, str]:
        kind = "a class-conditional" if run.model.num_classes is not None else "an unconditional"
        return f"{kind} variational autoencoder with {run.model.latent_size} latents", ""

    def page(self, run: Run, drawn: Mapping[str, Any], pictures: Mapping[str, Path]) -> dict[str, Any]:
        scores = readers.read_object(run.workdir / "evaluation.json")
        return showing.parts(run.model, drawn, pictures, scores.get("likelihood"))


METHOD = VariationalAutoencoderMethod()
