"""Classifiers of noisy images, by which diffusion is guided (Dhariwal and Nichol 2021)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from diffusion_jax.diffusion.process import PROCESSES
from diffusion_jax.methods.classifier import readings
from diffusion_jax.methods.classifier.noisy_classifier import NoisyClassifier
from diffusion_jax.methods.method import Config, Context, Method, Run
from diffusion_jax.methods.settings import Evaluation, Sampling
from diffusion_jax.models.registry import CLASSIFIERS
from diffusion_jax.options import Variants, described, section


@described(least_crop="random crops of training images keep this share of their side at least; 1: no crops")
@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of config.method."""

    least_crop: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.least_crop <= 1:
            raise ValueError(f"least_crop is {self.least_crop}; it must be above 0, at most 1")


class ClassifierMethod(Method):
    """See `Method`; the model is a `NoisyClassifier`."""

    settings = Settings
    sections: ClassVar = {
        "data": True,
        "method": True,
        "model": Variants(CLASSIFIERS, "unet_classifier", ("num_classes", "dtype"), text="the network"),
        "process": Variants(PROCESSES, "linear", text="the forward process, that of the model which is to be guided"),
        "training": True,
        "optimizer": True,
        "ema": True,
        "posthoc_ema": True,
        "mesh": True,
        "sampling": section(Sampling),
        "evaluation": section(Evaluation),
    }

    jobs: ClassVar = {"sample": readings.sample, "evaluate": readings.evaluate}

    def needs_labels(self, config: Config) -> str | None:
        return f"config.method.name is {config.method.name!r}"

    def build(self, config: Config, context: Context) -> NoisyClassifier:
        size, channels = config.data.image_size, config.data.channels
        with config.model.errors():
            network: Any = config.model.build(num_classes=context.num_classes, dtype=config.training.compute_dtype)
            network.validate(size, channels)
        with config.process.errors():
            process = config.process.build()
        assert context.num_classes is not None  # data without labels are refused before
        return NoisyClassifier(
            network=network,
            process=process,
            image_shape=(size, size, channels),
            num_classes=context.num_classes,
            least_crop=config.method.least_crop,
        )

    def summary(self, run: Run, drawn: Mapping[str, Any]) -> tuple[str, str]:
        del drawn
        guides = "; it guides diffusion models of this process: sampling.classifier names its work directory"
        return f"a classifier for the noise of the process {run.config.process.name}", guides

    def write_report(
        self, run: Run, basics: Mapping[str, Any], drawn: Mapping[str, Any], pictures: Mapping[str, Path]
    ) -> None:
        del drawn
        readings.write_report(run, basics, pictures["sampling.gif"])


METHOD = ClassifierMethod()
