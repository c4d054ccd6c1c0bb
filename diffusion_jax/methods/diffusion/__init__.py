"""Diffusion of images: Gaussian noise is added step by step, and a network learns to take it away."""

from __future__ import annotations

from typing import Any

from diffusion_jax.data.sources import LATENT_SOURCES
from diffusion_jax.diffusion.prediction import PREDICTIONS
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.methods.diffusion import building
from diffusion_jax.methods.diffusion.model import Diffusion
from diffusion_jax.methods.diffusion.settings import SECTIONS, Settings
from diffusion_jax.methods.method import Config, Context, Method


class DiffusionMethod(Method):
    """See `Method`; the model is a `Diffusion`."""

    settings = Settings
    sections = SECTIONS
    # Whether the data are latents.
    of_latents = False

    def check(self, config: Config) -> None:
        sampling, settings = config.sampling, config.method
        if (config.data.name in LATENT_SOURCES) != self.of_latents:
            kinds = {True: "of latents", False: "of images"}
            raise ValueError(
                f"config.method.name is {settings.name!r}, which is {kinds[self.of_latents]}, and config.data.name "
                f"{config.data.name!r}, which is {kinds[not self.of_latents]}"
            )
        if sampling.guidance_channels is not None and sampling.guidance_channels > config.data.channels:
            raise ValueError(
                f"config.sampling.guidance_channels is {sampling.guidance_channels}, but config.data.channels is "
                f"{config.data.channels}"
            )
        without_null = settings.class_conditional and not settings.label_dropout
        if without_null and sampling.guidance_scale != 1 and not sampling.guide:
            raise ValueError(
                f"config.sampling.guidance_scale is {sampling.guidance_scale}, which needs a network that has seen "
                "images without labels; set config.method.label_dropout above 0, or guidance_scale to 1"
            )
        if sampling.classifier and settings.prediction not in PREDICTIONS:
            raise ValueError(
                f"config.method.prediction is {settings.prediction!r}; with config.sampling.classifier it can be "
                f"{', '.join(PREDICTIONS)}"
            )
        for name in config.evaluation.sweep_samplers:
            if name not in SAMPLERS:
                raise ValueError(f"config.evaluation.sweep_samplers has {name!r}; it can have {', '.join(SAMPLERS)}")

    def needs_labels(self, config: Config) -> str | None:
        return "config.method.class_conditional is True" if config.method.class_conditional else None

    def build(self, config: Config, context: Context) -> Any:
        num_classes = context.num_classes if config.method.class_conditional else None
        chain = building.process(config)
        fields = {
            "network": building.network(config, num_classes),
            "objective": building.objective(config, chain),
            "sampler": building.sampler(config, chain),
            "image_shape": (config.data.image_size, config.data.image_size, config.data.channels),
            "num_classes": num_classes,
            "label_dropout": config.method.label_dropout,
            "augmentation": building.augmentation(config),
            "coupling": config.method.coupling,
            "adaptive_weighting": config.method.adaptive_weighting,
            "guidance": building.guidance(config, num_classes, context),
        }
        classifier: Any = fields["guidance"].classifier
        known = getattr(classifier, "num_classes", None)
        if classifier is not None and context.num_classes not in (None, known):
            raise ValueError(
                f"config.sampling.classifier {config.sampling.classifier!r} knows {known} classes, but the data has "
                f"{context.num_classes}"
            )
        return self._model(config, context, fields)

    def _model(self, config: Config, context: Context, fields: dict[str, Any]) -> Diffusion:
        del config, context
        return Diffusion(**fields)


METHOD = DiffusionMethod()
