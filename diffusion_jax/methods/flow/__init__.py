"""Normalising flows: an invertible network takes images to noise, so that their likelihood is known exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.methods import latent_walk
from diffusion_jax.methods.flow import words
from diffusion_jax.methods.flow.model import Flow
from diffusion_jax.methods.flow.settings import SECTIONS, Settings
from diffusion_jax.methods.method import Config, Context, Method, Run

ESTIMATE = (
    "exact density, averaged over {} draws of uniform dequantisation; an upper bound of the bits of the discrete images"
)
# Draws of the noise over which the likelihood of an image is averaged.
_DRAWS = 8
# More levels would leave no pixels of a miniature.
_MOST_LEVELS = 2


class FlowMethod(Method):
    """See `Method`; the model is a `Flow`."""

    settings = Settings
    sections = SECTIONS
    shows: ClassVar = (latent_walk.PICTURE,)

    def shrink(self, config: Config) -> None:
        config.model.levels = min(config.model.levels, _MOST_LEVELS)

    def needs_labels(self, config: Config) -> str | None:
        return "config.method.class_conditional is True" if config.method.class_conditional else None

    def build(self, config: Config, context: Context) -> Flow:
        size, channels = config.data.image_size, config.data.channels
        num_classes = context.num_classes if config.method.class_conditional else None
        with config.model.errors():
            network: Any = config.model.build(num_classes=num_classes, dtype=config.training.compute_dtype)
            network.validate(size, channels)
        return Flow(network, (size, size, channels), num_classes, config.method.pixel_levels)

    def given(self, run: Run) -> dict[str, Any]:
        return {"temperature": np.float32(run.config.sampling.temperature)}

    def drawn(self, run: Run) -> dict[str, Any]:
        return {"temperature": run.config.sampling.temperature, "network_evaluations_per_image": 1}

    def protocol(self, run: Run) -> dict[str, Any]:
        return {"temperature": run.config.sampling.temperature}

    def pictures(self, run: Run, labels: np.ndarray | None, frames: np.ndarray, captions: Sequence[str]) -> None:
        del captions
        if run.paints:
            latent_walk.write_interpolation(run, labels, frames)

    def scores(self, run: Run) -> dict[str, Any]:
        """The mean over test images of their bits per dimension, each averaged over draws of the noise."""
        count = run.config.evaluation.num_likelihood_images
        if not count:
            return {}
        model: Flow = run.model
        images, labels = data.load_arrays(run.test_source, limit=count)
        base = jax.random.key(run.config.seed)

        def estimate(params: Any, indices: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(base, indices)

            def one_draw(draw: jax.Array) -> jax.Array:
                drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, draw)
                return model.bits_per_dimension(params, images, labels if model.num_classes else None, drawn)

            return jax.lax.map(one_draw, jax.numpy.arange(_DRAWS)).mean(0)

        bits = run.batched(estimate)(data.to_float(images), labels)
        return {
            "bits_per_dimension": {
                "mean": float(bits.mean()),
                "standard_error": float(bits.std() / np.sqrt(len(bits))),
                "images": len(bits),
                "estimate": ESTIMATE.format(_DRAWS),
                "uncompressed": math.log2(model.pixel_levels),
            }
        }

    def summary(self, run: Run, drawn: Mapping[str, Any]) -> tuple[str, str]:
        kind = "a class-conditional" if run.model.num_classes is not None else "an unconditional"
        return f"{kind} normalising flow", f", and sampled at temperature {drawn['temperature']:g}"

    def page(self, run: Run, drawn: Mapping[str, Any], pictures: Mapping[str, Path]) -> Mapping[str, Any]:
        return words.parts(
            run.model.pixel_levels,
            drawn["temperature"],
            animation=pictures.get("sampling.gif"),
            interpolation=pictures.get(latent_walk.PICTURE),
        )


METHOD = FlowMethod()
