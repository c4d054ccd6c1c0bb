"""What the jobs of one run share: config, devices, data, method and work directory, each built when first asked for."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffusion_jax import batching, data, hub
from diffusion_jax.config import ConfigError, Experiment, build, saved
from diffusion_jax.config.check import check, flatten
from diffusion_jax.config.quick import shrink
from diffusion_jax.data.source import LABEL
from diffusion_jax.figures.files import write_atomically
from diffusion_jax.methods.latent_space import Decoder
from diffusion_jax.methods.method import Method
from diffusion_jax.metrics.classifier import Classifier, train_classifier
from diffusion_jax.metrics.devices import on_every_device
from diffusion_jax.training import ema_snapshots, scoring, sharding, subset
from diffusion_jax.training.logging import say
from diffusion_jax.training.method import drawn_with, pick

if typing.TYPE_CHECKING:
    cached_property = property  # which can be compared with the properties of a protocol
else:
    cached_property = functools.cached_property

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
        self.method: Method = build.method_of(config)
        self.model: Any = build.model(config, lambda: self.train_source)
        self.decoder: Decoder | None = build.decoder(config, self.model, lambda: self.train_source)
        self.optimizer, self.learning_rate, self.ema_decay = build.optimization(config, self.model)
        self._classifier: Classifier | None = None

    @property
    def paints(self) -> bool:
        """Whether this process writes files; of several, process 0."""
        return jax.process_index() == 0

    @cached_property
    def train_source(self) -> data.Source:
        return build.source(self.config, "train")

    @cached_property
    def test_source(self) -> data.Source:
        return build.source(self.config, "test")

    @cached_property
    def decoder_parameters(self) -> Any:
        """Of the decoder, whole on every device."""
        return None if self.decoder is None else on_every_device(self.mesh, self.decoder.params)

    def images(self, source: data.Source, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, H, W, C] and labels [N] of a source; of latents, what the means decode to."""
        stored, labels = data.load_arrays(source, limit=limit)
        return self.images_of(stored), labels

    def images_of(self, stored: np.ndarray) -> np.ndarray:
        """Images uint8 [N, H, W, C] of what a source holds. Several processes have to call it together."""
        if self.decoder is None:
            return stored
        return data.to_uint8(self.decode(np.asarray(self.decoder.of_stored(jnp.asarray(stored)))))

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
        decode = functools.partial(self._decode, self.decoder_parameters)
        return batching.mapped(decode, drawn, self.config.sampling.batch_size)

    @cached_property
    def _decode(self) -> Any:
        assert self.decoder is not None
        apply, split = self.decoder.apply, sharding.batch_sharding(self.mesh)
        return jax.jit(
            lambda params, drawn: apply(params, jax.lax.with_sharding_constraint(drawn, split)),
            out_shardings=sharding.replicated(self.mesh),
        )

    def batched(self, function: Callable[..., Any], size: int | None = None) -> Callable[..., Any]:
        """See `methods.method.Run`. Several processes have to call the result together, as they share the work."""
        split, devices = sharding.batch_sharding(self.mesh), sharding.num_shards(self.mesh)
        precision = self.config.training.matmul_precision

        @functools.partial(jax.jit, out_shardings=sharding.replicated(self.mesh))
        def of_batch(params: Any, indices: jax.Array, rows: Any, traced: Any) -> Any:
            indices, rows = jax.lax.with_sharding_constraint((indices, rows), split)
            with jax.default_matmul_precision(precision):
                return function(params, indices, *rows, **traced)

        def of_all(*rows: Any, **traced: Any) -> Any:
            count = len(jax.tree.leaves(rows)[0])
            length = size or min(self.config.sampling.batch_size, batching.rounded_up(count, devices))

            def of_rows(batch: tuple[Any, ...]) -> Any:
                return of_batch(self.parameters[1], batch[0], batch[1:], traced)

            return batching.mapped(of_rows, (np.arange(count, dtype=np.int32), *rows), length)

        return of_all

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes that samples are asked for."""
        return self.train_source.class_names if LABEL in self.model.conditions else None

    @cached_property
    def parameters(self) -> tuple[int, Any]:
        """(step, parameters to sample with) of config.evaluation.checkpoint; CheckpointError where there is none."""
        height, width, channels = self.model.image_shape
        batch = {"image": jax.ShapeDtypeStruct((1, height, width, channels), np.float32)}
        shapes = pick(jax.eval_shape(self.model.init, jax.random.key(0), batch), drawn_with(self.model))
        folder = self.workdir / (scoring.BEST if self.config.evaluation.checkpoint == "best" else "checkpoints")
        if (sigma_rel := self.config.sampling.ema_width) is not None:
            return ema_snapshots.reconstruct(self.workdir, sigma_rel, sharding.sharded_shapes(self.mesh, shapes))
        return subset.restore_averaged(self.workdir, folder, sharding.sharded_shapes(self.mesh, shapes))

    def restore(
        self, workdir: str, init: Callable[[], Any], width: float | None = None, step: int | None = None
    ) -> Any:
        """See `methods.method.Run`. Raises CheckpointError where there are no such parameters."""
        folder = Path(workdir).expanduser().absolute()
        if not (folder / "checkpoints").is_dir() and (folder / "model.safetensors").is_file():
            return on_every_device(self.mesh, hub.load(folder)[1])
        shapes = sharding.sharded_shapes(self.mesh, jax.eval_shape(init))
        if width is not None:
            return ema_snapshots.reconstruct(folder, width, shapes, step)[1]
        return subset.restore_averaged(folder, folder / "checkpoints", shapes)[1]

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

    def make_workdir(self) -> None:
        """Makes the work directory, from process 0. Raises ConfigError where it cannot be."""
        if jax.process_index() == 0:
            try:
                self.workdir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--workdir {self.workdir}: cannot be made: {error.strerror}") from error

    def write_config(self) -> None:
        """Leaves config.json, by which a later command is held to the same run."""
        if not self.paints:
            return
        try:
            self.write_json("config.json", self.config.to_dict())
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

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a file of the work directory whole or not at all."""
        write_json(self.workdir / name, content)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2, default=str) + "\n")
