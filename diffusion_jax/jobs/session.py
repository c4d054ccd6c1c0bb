"""What the jobs of one run share: config, devices, data, method and work directory, each built when first asked for."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffusion_jax import data, hub
from diffusion_jax.config import ConfigError, Experiment, build, saved
from diffusion_jax.config.check import check, flatten
from diffusion_jax.config.quick import shrink
from diffusion_jax.methods.diffusion.model import Diffusion
from diffusion_jax.methods.latent_diffusion.model import LatentDiffusion
from diffusion_jax.methods.latents import Decoder
from diffusion_jax.metrics.classifier import Classifier, train_classifier
from diffusion_jax.metrics.devices import on_every_device
from diffusion_jax.training import checkpoints, ema_snapshots, scoring, sharding
from diffusion_jax.training.logging import say

# A run may be resumed with other values of these; anything else would make it another run.
CHANGEABLE = (
    *("name", "debug", "training.num_steps", "training.log_every", "training.checkpoint_every"),
    *("training.max_to_keep", "training.max_bad_steps"),
)
CHANGEABLE_SECTIONS = (
    "sampling.",
    "evaluation.",
    "mesh.",
    "data.num_workers",
    "data.path",
    "data.data_dir",
    "latents.vae",
)


class Session:
    """A config with its work directory. Building one checks the whole config and compiles nothing.

    With `config.quick`, `self.config` is the small experiment. `command` is what the user typed, for the report. Raises
    ConfigError (one line) for a config that cannot be, and for one that contradicts the run in `workdir`.
    """

    def __init__(self, config: Experiment, workdir: Path, command: str = ""):
        self.command = command
        self.workdir = workdir.absolute()
        with build.section("mesh"):
            self.mesh: Mesh = sharding.make_mesh(**config.mesh)
        num_devices = sharding.num_shards(self.mesh)
        check(config, num_devices)
        if config.quick:
            config = shrink(config)
            check(config, num_devices)
        self.config = config
        self._check_same_run()
        self.trained: Any = build.model(config, lambda: self.train_source)
        self.decoder: Decoder | None = build.decoder(config, self.trained, lambda: self.train_source)
        self.optimizer, self.learning_rate, self.ema_decay = build.optimization(config)
        self._classifier: Classifier | None = None

    @property
    def method(self) -> Diffusion:
        """What draws images; the run of a classifier has none."""
        assert isinstance(self.trained, Diffusion)
        return self.trained

    @functools.cached_property
    def train_source(self) -> data.Source:
        return build.source(self.config, "train")

    @functools.cached_property
    def test_source(self) -> data.Source:
        return build.source(self.config, "test")

    @functools.cached_property
    def decoder_parameters(self) -> Any:
        """Of the decoder, whole on every device."""
        return None if self.decoder is None else on_every_device(self.mesh, self.decoder.params)

    def images(self, source: data.Source, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, H, W, C] and labels [N] of a source; of latents, what the means decode to."""
        images, labels = data.load_arrays(source, limit=limit)
        if isinstance(self.trained, LatentDiffusion):
            x0 = self.trained.space.from_latents(jnp.asarray(images[..., : self.config.data.channels]))
            images = data.to_uint8(self.decode(np.asarray(x0)))
        return images, labels

    def classifier(self, train: tuple[np.ndarray, np.ndarray] | None = None) -> Classifier:
        """The classifier of the training split's classes that scores use, trained when it is first asked for.

        The same on every process, which have to call it together, and so its methods. train: the images and labels of
        `self.images`, where they are at hand.
        """
        if self._classifier is None:
            options, source = self.config.evaluation, self.train_source
            assert source.num_classes is not None
            images, labels = train or self.images(source, options.max_reference_images)
            say(f"training a small classifier on {len(images):,} images, for the scores")
            trained = train_classifier(
                images, labels, source.num_classes, seed=self.config.seed, steps=options.classifier_steps
            )
            if jax.process_count() > 1:  # hosts may differ in how they round
                trained = dataclasses.replace(trained, params=multihost_utils.broadcast_one_to_all(trained.params))
            self._classifier = dataclasses.replace(trained, mesh=self.mesh)
        return self._classifier

    def decode(self, drawn: np.ndarray) -> np.ndarray:
        """Images float32 in [-1, 1] of what the method works on [N, ...], in batches of config.sampling.batch_size.

        Several processes have to call it together, as they share the work.
        """
        if self.decoder is None:
            return drawn
        size = self.config.sampling.batch_size
        parts = []
        for start in range(0, len(drawn), size):
            part = drawn[start : start + size]
            whole = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]), part.dtype)])
            parts.append(np.asarray(self._decode(self.decoder_parameters, whole))[: len(part)])
        return np.concatenate(parts)

    @functools.cached_property
    def _decode(self) -> Any:
        assert self.decoder is not None
        apply, split = self.decoder.apply, sharding.batch_sharding(self.mesh)
        return jax.jit(
            lambda params, drawn: apply(params, jax.lax.with_sharding_constraint(drawn, split)),
            out_shardings=sharding.replicated(self.mesh),
        )

    @property
    def num_classes(self) -> int | None:
        """Of what the network is told; None for nothing."""
        return self.train_source.num_classes if self.config.method.class_conditional else None

    @property
    def requested_classes(self) -> int | None:
        """How many classes samples are asked for, of the network or of the classifier that guides; None for none."""
        classifier: Any = self.method.guidance.classifier
        return self.num_classes if classifier is None else classifier.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes that samples are asked for."""
        return None if self.requested_classes is None else self.train_source.class_names

    @functools.cached_property
    def parameters(self) -> tuple[int, Any]:
        """(step, parameters to sample with) of config.evaluation.checkpoint; CheckpointError where there is none."""
        height, width, channels = self.trained.image_shape
        batch = {"image": jax.ShapeDtypeStruct((1, height, width, channels), np.float32)}
        shapes = jax.eval_shape(self.trained.init, jax.random.key(0), batch)
        folder = self.workdir / (scoring.BEST if self.config.evaluation.checkpoint == "best" else "checkpoints")
        if (sigma_rel := self.config.sampling.ema_width) is not None:
            return ema_snapshots.reconstruct(self.workdir, sigma_rel, sharding.sharded_shapes(self.mesh, shapes))
        return checkpoints.restore_params(folder, sharding.sharded_shapes(self.mesh, shapes))

    @functools.cached_property
    def guide_parameters(self) -> Any:
        """Parameters of the network that guides; None without one. Raises CheckpointError where it has none."""
        guide, sampling = self.method.guidance.guide, self.config.sampling
        if guide is None:
            return None
        sample = jnp.zeros((1, *self.method.image_shape))
        labels = jnp.zeros(1, jnp.int32) if self.method.guidance.guide_is_conditional else None
        shapes = jax.eval_shape(guide.init, jax.random.key(0), sample, jnp.zeros(1, jnp.int32), labels)["params"]
        shapes, workdir = sharding.sharded_shapes(self.mesh, shapes), Path(sampling.guide).expanduser().absolute()
        if sampling.guide_ema_width is not None:
            return ema_snapshots.reconstruct(workdir, sampling.guide_ema_width, shapes, sampling.guide_step)[1]
        return checkpoints.restore_params(workdir / "checkpoints", shapes)[1]

    @functools.cached_property
    def classifier_parameters(self) -> Any:
        """Parameters of the classifier that guides, averaged; None without one. Raises CheckpointError, as above."""
        classifier = self.method.guidance.classifier
        if classifier is None:
            return None
        workdir = Path(self.config.sampling.classifier).expanduser().absolute()
        if not (workdir / "checkpoints").is_dir():
            return on_every_device(self.mesh, hub.load(workdir)[1])
        sample = jnp.zeros((1, *self.method.image_shape))
        shapes = jax.eval_shape(classifier.init, jax.random.key(0), sample, jnp.zeros(1, jnp.int32))["params"]
        return checkpoints.restore_params(workdir / "checkpoints", sharding.sharded_shapes(self.mesh, shapes))[1]

    @property
    def guided(self) -> bool:
        """Whether a second evaluation of the network, or one of the guide, guides each step."""
        has_two = self.num_classes is not None or self.method.guidance.guide is not None
        return has_two and self.config.sampling.guidance_scale != 1

    def labels(self, indices: np.ndarray) -> np.ndarray | None:
        """The class that image i of a sampling run is asked for: each in turn, int32; None without classes."""
        classes = self.requested_classes
        return None if classes is None else (indices % classes).astype(np.int32)

    def make_workdir(self) -> None:
        """Makes the work directory, from process 0. Raises ConfigError where it cannot be."""
        if jax.process_index() == 0:
            try:
                self.workdir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--workdir {self.workdir}: cannot be made: {error.strerror}") from error

    def write_config(self) -> None:
        """Leaves config.json, by which a later command is held to the same run."""
        if jax.process_index() != 0:
            return
        try:
            write_json(self.workdir / "config.json", self.config.to_dict())
        except OSError as error:
            raise ConfigError(f"--workdir {self.workdir}: cannot be written: {error.strerror}") from error

    def _check_same_run(self) -> None:
        path = self.workdir / "config.json"
        if not path.exists() or not (self.workdir / "checkpoints").exists():
            return
        try:
            before = dict(flatten(saved.read(self.workdir)))
        except ConfigError as error:
            raise ConfigError(f"{error}; name another --workdir") from error
        for field, value in flatten(self.config):
            if field in CHANGEABLE or field.startswith(CHANGEABLE_SECTIONS) or field not in before:
                continue
            if before[field] != value:
                raise ConfigError(
                    f"config.{field} is {value!r}, but the run in {self.workdir} was begun with {before[field]!r}; "
                    "name another --workdir, or set it back"
                )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(partial, path)
