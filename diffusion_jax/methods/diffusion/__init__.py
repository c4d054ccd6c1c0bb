"""Diffusion of images: Gaussian noise is added step by step, and a network learns to take it away."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.conditions.condition import arguments, nulls
from diffusion_jax.data.source import LABEL
from diffusion_jax.data.sources import LATENT_SOURCES
from diffusion_jax.diffusion.prediction import PREDICTIONS
from diffusion_jax.figures import diffusion_report, strips
from diffusion_jax.methods.diffusion import building, likelihood, showing
from diffusion_jax.methods.diffusion.model import Diffusion
from diffusion_jax.methods.diffusion.settings import SECTIONS, Settings
from diffusion_jax.methods.method import Config, Context, Method, Run

# What samplers are called in print.
_SAMPLERS = {
    **{name: name.upper() for name in ("ddim", "ddpm", "deis", "edm", "lms", "plms")},
    **{"dpmpp": "DPM-Solver++", "euler": "Euler", "heun": "Heun", "unipc": "UniPC"},
}


class DiffusionMethod(Method):
    """See `Method`; the model is a `Diffusion`."""

    settings = Settings
    sections = SECTIONS
    shows: ClassVar = (showing.DENOISING, showing.NOISING)
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
        without_null = building.names(config) and not settings.label_dropout
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

    def needs_labels(self, config: Config) -> str | None:
        if config.method.class_conditional:
            return "config.method.class_conditional is True"
        return f"config.method.conditions has {LABEL!r}" if LABEL in config.method.conditions else None

    def build(self, config: Config, context: Context) -> Any:
        told = building.told(config, context)
        chain = building.process(config)
        fields = {
            "network": building.network(config, told),
            "objective": building.objective(config, chain),
            "sampler": building.sampler(config, chain),
            "image_shape": (config.data.image_size, config.data.image_size, config.data.channels),
            "told": told,
            "label_dropout": config.method.label_dropout,
            "augmentation": building.augmentation(config),
            "coupling": config.method.coupling,
            "adaptive_weighting": config.method.adaptive_weighting,
            "guidance": building.guidance(config, told, context),
        }
        classifier: Any = fields["guidance"].classifier
        known = getattr(classifier, "num_classes", None)
        if classifier is not None and context.num_classes not in (None, known):
            raise ValueError(
                f"config.sampling.classifier {config.sampling.classifier!r} knows {known} classes, but the data has "
                f"{context.num_classes}"
            )
        return self._model(config, context, fields)

    def given(self, run: Run) -> dict[str, Any]:
        model: Diffusion = run.model
        sampling, guidance = run.config.sampling, model.guidance
        image, time = jnp.zeros((1, *model.image_shape)), jnp.zeros(1, jnp.int32)
        given: dict[str, Any] = {}
        if is_guided(run):
            given["guidance_scale"] = np.float32(sampling.guidance_scale)
        if (guide := guidance.guide) is not None:
            zeros = jax.tree.map(jnp.zeros_like, nulls(model.told, 1))
            told = arguments(model.told, zeros) if guidance.guide_is_conditional else {}
            given["guide_params"] = run.restore(
                sampling.guide,
                lambda: guide.init(jax.random.key(0), image, time, **told)["params"],
                sampling.guide_ema_width,
                sampling.guide_step,
            )
        if (classifier := guidance.classifier) is not None:
            given["classifier_scale"] = np.float32(sampling.classifier_scale)
            given["classifier_params"] = run.restore(
                sampling.classifier, lambda: classifier.init(jax.random.key(0), image, time)["params"]
            )
        return given

    def drawn(self, run: Run) -> dict[str, Any]:
        sampling, sampler = run.config.sampling, run.model.sampler
        return {
            "sampler": sampling.name,
            "num_steps": sampler.num_steps,
            "network_evaluations_per_image": sampler.num_evaluations * (2 if is_guided(run) else 1),
            "guidance_scale": sampling.guidance_scale if is_guided(run) else None,
            "classifier_scale": sampling.classifier_scale if sampling.classifier else None,
        }

    def protocol(self, run: Run) -> dict[str, Any]:
        sampling = run.config.sampling
        can_guide = is_guided(run) or bool(run.model.told)
        protocol = {
            "sampler": sampling.name,
            "sampler_steps": run.model.sampler.num_steps,
            "guidance_scale": sampling.guidance_scale if can_guide else None,
        }
        if sampling.classifier:
            protocol |= {"classifier": sampling.classifier, "classifier_scale": sampling.classifier_scale}
        return protocol

    def ways(self, run: Run) -> Iterator[Config]:
        sweeps = run.config.evaluation
        if not (sweeps.sweep_samplers or sweeps.sweep_steps or sweeps.sweep_guidance):
            return
        is_trained_for_it = bool(run.model.told) and run.config.method.label_dropout > 0
        if sweeps.sweep_guidance and not (is_trained_for_it or run.model.guidance.guide is not None):
            raise ValueError(
                "config.evaluation.sweep_guidance needs a class-conditional method that was trained with "
                "config.method.label_dropout above 0, or config.sampling.guide"
            )
        samplers = sweeps.sweep_samplers or (run.config.sampling.name,)
        steps = sweeps.sweep_steps or (None,)  # as set, or else by the default of each sampler
        scales = sweeps.sweep_guidance or (run.config.sampling.guidance_scale,)
        for name, num_steps, scale in itertools.product(samplers, steps, scales):
            yield sampled_by(run.config, name, num_steps, float(scale))

    def drawn_by(self, model: Diffusion, config: Config) -> Diffusion:
        return dataclasses.replace(model, sampler=building.sampler(config, model.objective.process))

    def pictures(self, run: Run, labels: np.ndarray | None, frames: np.ndarray, captions: Sequence[str]) -> None:
        strip = showing.forward_noising(run, run.decoder)
        if run.paints:
            showing.write_denoising(run, labels, frames, captions)
            strips.write_strip(run.workdir / showing.NOISING, *strip)

    def scores(self, run: Run) -> dict[str, Any]:
        if not run.config.evaluation.num_likelihood_images:
            return {}
        return {"bits_per_dimension": likelihood.of_test_images(run)}

    def summary(self, run: Run, drawn: Mapping[str, Any]) -> tuple[str, str]:
        kind = "an unconditional"
        if run.model.told:
            kind = "a class-conditional" if run.model.num_classes is not None else "a conditional"
        sampler = _SAMPLERS.get(drawn["sampler"], drawn["sampler"])
        ending = f", and sampled with {sampler} in {drawn['num_steps']} steps"
        return f"{kind} diffusion model", ending

    def page(self, run: Run, drawn: Mapping[str, Any], pictures: Mapping[str, Path]) -> Mapping[str, Any]:
        fields = ("sampler", "num_steps", "guidance_scale", "classifier_scale")
        return diffusion_report.parts(
            run.config.method.prediction,
            *(drawn[name] for name in fields),
            animation=pictures.get("sampling.gif"),
            denoising=pictures.get(showing.DENOISING),
            noising=pictures.get(showing.NOISING),
        )

    def _model(self, config: Config, context: Context, fields: dict[str, Any]) -> Diffusion:
        del config, context
        return Diffusion(**fields)


def is_guided(run: Run) -> bool:
    """Whether a second evaluation of the network, or one of the guide, guides each step."""
    has_two = bool(run.model.told) or run.model.guidance.guide is not None
    return has_two and run.config.sampling.guidance_scale != 1


def sampled_by(config: Config, name: str, num_steps: int | None, guidance_scale: float) -> Config:
    """A config that samples in another way; what was set of the sampler is kept where the other has it too."""
    other = config.copy_and_resolve_references()
    other.sampling.name = name
    other.sampling.guidance_scale = guidance_scale
    if num_steps is not None:
        other.sampling.num_steps = num_steps
    return other


METHOD = DiffusionMethod()
