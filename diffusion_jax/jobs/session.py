"""What the jobs of one run share: its config, data and method, its work directory, what it trained, its images."""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffusion_jax import data
from diffusion_jax.config import Experiment, build
from diffusion_jax.config.check import check
from diffusion_jax.config.quick import shrink
from diffusion_jax.data.source import LABEL
from diffusion_jax.jobs.image_decoder import ImageDecoder
from diffusion_jax.jobs.trained_model import TrainedModel
from diffusion_jax.jobs.work_directory import WorkDirectory
from diffusion_jax.methods.latent_space import Decoder
from diffusion_jax.methods.method import Method
from diffusion_jax.metrics.classifier import Classifier, train_classifier
from diffusion_jax.training import loop, sharding
from diffusion_jax.training.logging import say

if typing.TYPE_CHECKING:
    cached_property = property  # which can be compared with the properties of a protocol
else:
    cached_property = functools.cached_property


class Session:
    """A run, as its jobs share it: a config with its data and method, and what is made of them when it is asked for.

    Building one checks the whole config and compiles nothing. With `config.quick`, `self.config` is the small
    experiment. `command` is what the user typed, for the report. Raises ConfigError (one line) for a config that cannot
    be, and for one that contradicts the run in `workdir`.

    Attributes:
      config, mesh, method, model, optimizer, learning_rate, ema_decay: of the config.
      record: the work directory.
      trained: the parameters in it.
      images: from what the method works on to images.
      beginning: what training begins with in the place of new parameters, once `starting.check` has opened it.
    """

    def __init__(self, config: Experiment, workdir: Path, command: str = ""):
        self.command = command
        self.record = WorkDirectory(workdir)
        with build.section("mesh"):
            self.mesh: Mesh = sharding.make_mesh(**config.mesh)
        num_devices = sharding.num_shards(self.mesh)
        check(config, num_devices)
        if config.quick:
            config = shrink(config)
            check(config, num_devices)
        self.config = config
        self.record.check_same_run(config)
        self.method: Method = build.method_of(config)
        self.model: Any = build.model(config, lambda: self.train_source)
        decoder = build.decoder(config, self.model, lambda: self.train_source)
        self.images = ImageDecoder(decoder, self.mesh, config.sampling.batch_size)
        self.trained = TrainedModel(config, self.model, self.workdir, self.mesh)
        self.optimizer, self.learning_rate, self.ema_decay = build.optimization(config, self.model)
        self.beginning: loop.Start | None = None
        self._classifier: Classifier | None = None

    @cached_property
    def train_source(self) -> data.Source:
        return build.source(self.config, "train")

    @cached_property
    def test_source(self) -> data.Source:
        return build.source(self.config, "test")

    def classifier(self, train: tuple[np.ndarray, np.ndarray] | None = None) -> Classifier:
        """The classifier of the training split's classes that scores use, trained when it is first asked for.

        The same on every process, which have to call it together, and so its methods. train: the images and labels of
        `self.images.load`, where they are at hand.
        """
        if self._classifier is None:
            options, source = self.config.evaluation, self.train_source
            assert source.num_classes is not None
            images, labels = train or self.images.load(source, options.max_reference_images)
            say(f"training a small classifier on {len(images):,} images, for the scores")
            trained = train_classifier(
                images, labels, source.num_classes, seed=self.config.seed, steps=options.classifier_steps
            )
            if jax.process_count() > 1:  # hosts may differ in how they round
                trained = dataclasses.replace(trained, params=multihost_utils.broadcast_one_to_all(trained.params))
            self._classifier = dataclasses.replace(trained, mesh=self.mesh)
        return self._classifier

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes that samples are asked for."""
        return self.train_source.class_names if LABEL in self.model.conditions else None

    @cached_property
    def given(self) -> Any:
        """What the model draws with beside its parameters."""
        return self.method.given(self)

    def drawn_by(self, config: Experiment) -> Session:
        """The same run, drawing by another config of the same model."""
        other = copy.copy(self)
        other.__dict__.pop("given", None)
        other.config, other.model = config, self.method.drawn_by(self.model, config)
        return other

    def requests(self, indices: np.ndarray) -> dict[str, Any]:
        """What the images at `indices` of a sampling run are asked for, by the name of each condition."""
        conditions = self.model.conditions
        return {name: known.requests(self.train_source, indices) for name, known in conditions.items()}

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """The class that image i of a sampling run is asked for, int32; None without classes."""
        return self.requests(indices).get(LABEL)

    # What `methods.method.Run` shows of the three.

    @property
    def workdir(self) -> Path:
        return self.record.path

    @property
    def paints(self) -> bool:
        return self.record.paints

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        self.record.write_json(name, content)

    @property
    def parameters(self) -> tuple[int, Any]:
        return self.trained.parameters

    def restore(
        self, workdir: str, init: Callable[[], Any], width: float | None = None, step: int | None = None
    ) -> Any:
        return self.trained.restore(workdir, init, width, step)

    def batched(self, function: Callable[..., Any], size: int | None = None) -> Callable[..., Any]:
        return self.trained.batched(function, size)

    @property
    def decoder(self) -> Decoder | None:
        return self.images.decoder

    def decode(self, drawn: np.ndarray) -> np.ndarray:
        return self.images.decode(drawn)
