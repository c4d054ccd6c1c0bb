"""Generative adversarial networks: one network draws images, another tells them from real ones, and both learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from diffusion_jax.methods import latent_walk
from diffusion_jax.methods.gan import page
from diffusion_jax.methods.gan.losses import GAMES
from diffusion_jax.methods.gan.model import DISCRIMINATOR, GAN, GENERATOR, Weights
from diffusion_jax.methods.gan.settings import SECTIONS, Settings
from diffusion_jax.methods.method import Config, Context, Method, Run

# Latents of each class whose mean style truncation is towards.
_MEAN_OF = 10_000
# Sides of digits in a quick run, and at most so much of each field of the two networks.
_QUICK_SIZE = 8
_QUICK = {
    **{"width": 32, "depth": 2, "channels": 8, "max_channels": 16},
    **{"latent_dim": 8, "style_dim": 16, "mapping_depth": 2},
}


class GANMethod(Method):
    """See `Method`; the model is a `GAN`."""

    settings = Settings
    sections = SECTIONS
    optimizers: ClassVar = {GENERATOR: "optimizer", DISCRIMINATOR: "discriminator_optimizer"}
    shows: ClassVar = (latent_walk.PICTURE,)

    def shrink(self, config: Config) -> None:
        for section in (config.generator, config.discriminator):
            for field, most in _QUICK.items():
                if field in section:
                    section[field] = min(section[field], most)
        config.data.image_size = min(config.data.image_size or _QUICK_SIZE, _QUICK_SIZE)
        for field in ("penalties_every", "path_length_every", "generator_every"):
            config.method[field] = min(config.method[field], 2)

    def needs_labels(self, config: Config) -> str | None:
        return "config.method.class_conditional is True" if config.method.class_conditional else None

    def build(self, config: Config, context: Context) -> GAN:
        size, channels, chosen = config.data.image_size, config.data.channels, config.method
        filled = {
            "num_classes": context.num_classes if chosen.class_conditional else None,
            "dtype": config.training.compute_dtype,
        }
        with config.generator.errors():
            network: Any = config.generator.build(image_size=size, out_channels=channels, **filled)
            network.validate(size, channels)
        with config.discriminator.errors():
            discriminator: Any = config.discriminator.build(**filled)
            discriminator.validate(size, channels)
        with config.augmentation.errors():
            augmentation = config.augmentation.build()
        weights = Weights(**{field.name: chosen[field.name] for field in dataclasses.fields(Weights)})
        return GAN(
            network,
            discriminator,
            GAMES[chosen.game],
            (size, size, channels),
            filled["num_classes"],
            weights,
            augmentation,
        )

    def given(self, run: Run) -> Mapping[str, Any]:
        truncation = run.config.sampling.truncation
        if truncation == 1:
            return {}
        model: GAN = run.model
        styles = jax.jit(model.mean_styles, static_argnums=2)(run.parameters[1], jax.random.key(0), _MEAN_OF)
        return {"truncation": np.float32(truncation), "mean_styles": styles}

    def drawn(self, run: Run) -> Mapping[str, Any]:
        return {"network_evaluations_per_image": 1, "truncation": run.config.sampling.truncation}

    def protocol(self, run: Run) -> Mapping[str, Any]:
        return {"truncation": run.config.sampling.truncation}

    def pictures(self, run: Run, labels: np.ndarray | None, frames: np.ndarray, captions: Sequence[str]) -> None:
        if run.paints:
            latent_walk.write_interpolation(run, labels, frames, captions)

    def summary(self, run: Run, drawn: Mapping[str, Any]) -> tuple[str, str]:
        kind = "a class-conditional" if run.model.num_classes is not None else "an unconditional"
        truncation = drawn["truncation"]
        ending = "" if truncation == 1 else f", and sampled with truncation {truncation:g}"
        return f"{kind} generative adversarial network", ending

    def page(self, run: Run, drawn: Mapping[str, Any], pictures: Mapping[str, Path]) -> Mapping[str, Any]:
        return page.parts(
            run.config.method,
            run.model.augmentation,
            drawn["truncation"],
            animation=pictures.get("sampling.gif"),
            interpolation=pictures.get(latent_walk.PICTURE),
        )


METHOD = GANMethod()
