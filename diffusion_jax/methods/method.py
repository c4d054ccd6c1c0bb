"""What a method is to the rest of the house.

A method is a folder of `diffusion_jax/methods/` whose `METHOD` is a `Method`; the folder's name is what
`config.method.name` picks. Nothing outside the folder, its configs and its tests knows the name. The config takes its
sections from here, the training loop trains the model that `build` gives (`diffusion_jax.training.method` says what it
asks), and the jobs sample, evaluate and report draw with it and ask the method what is its own.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import jax
import numpy as np
from flax import linen as nn

from diffusion_jax import data
from diffusion_jax.conditions.condition import Conditions
from diffusion_jax.figures import report
from diffusion_jax.options import Constructor, Variants

# A config, or one of its sections: fields by name, as attributes.
Config = Any


class Model(Protocol):
    """What is trained: a frozen dataclass of pure functions, with those that the training loop asks for.

    Those are a `loss`, or the `turns` of several, see `diffusion_jax.training.method`.
    """

    @property
    def network(self) -> nn.Module:
        """The network whose parameters are sampled with and exported."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of what the network works on."""
        ...

    @property
    def conditions(self) -> Conditions:
        """What it is told of the images that it learns from, and images can be asked for, by name; {} for nothing."""
        ...

    def init(self, key: jax.Array, batch: Any) -> Any:
        """Parameters for batches shaped like `batch`, of which only "image" need be there."""
        ...


class Drawing(Model, Protocol):
    """A model that draws images."""

    def draw(
        self, params: Any, keys: jax.Array, condition: Mapping[str, Any], given: Any, frame_stride: int | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """What the network works on, float32 [N, H, W, C], image i from keys[i] and its condition alone; images in
        [-1, 1].

        Args:
          params: of the network, usually their average.
          keys: [N] PRNG keys.
          condition: what each image is asked for, of each of `conditions` a tree of arrays [N, ...].
          given: what `Method.given` gives; its arrays are traced, so that other values do not compile again.
          frame_stride: also the states on the way to the images, every so many, [frames, N, H, W, C], the images last;
            None in their place without. A model without a way has other frames: a walk through its latents.
        """
        ...

    def frames(self, count: int) -> tuple[int, Sequence[str]]:
        """(frame_stride, a caption for each frame) of an animation of about `count` frames."""
        ...


class Run(Protocol):
    """A trained run, as the jobs hand it to a method."""

    config: Config
    # What `Method.build` gave.
    model: Any

    @property
    def workdir(self) -> Path: ...

    @property
    def decoder(self) -> Any:
        """What `Method.decoder` gave."""
        ...

    @property
    def paints(self) -> bool:
        """Whether this process writes files. Of several, all compute and one paints."""
        ...

    @property
    def parameters(self) -> tuple[int, Any]:
        """(step, parameters to draw with). Raises ValueError where nothing was trained."""
        ...

    @property
    def train_source(self) -> data.Source: ...

    @property
    def test_source(self) -> data.Source: ...

    def restore(
        self, workdir: str, init: Callable[[], Any], width: float | None = None, step: int | None = None
    ) -> Any:
        """The averaged parameters, of the tree that `init` makes, of another run; or those in a folder of `hub.load`.

        width, step: of the average, from the run's snapshots. Raises ValueError where there are none.
        """
        ...

    def batched(self, function: Callable[..., Any], size: int | None = None) -> Callable[..., Any]:
        """`function(params, indices, *rows, **traced)` of a batch as one of rows [N, ...], in batches over all devices.

        It is compiled once, with the precision of the training; the last batch is filled up with the first rows again.
        The results are NumPy arrays [N, ...].

        Args:
          function: of the parameters, the places int32 [B] of the rows and the rows [B, ...], traced.
          size: of a batch; by default as few as the rows need, and config.sampling.batch_size at most.
        """
        ...

    def decode(self, drawn: np.ndarray) -> np.ndarray:
        """Images float32 in [-1, 1] of what the network works on, [N, ...]."""
        ...

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a file of the work directory whole or not at all."""
        ...


@dataclasses.dataclass(frozen=True)
class Context:
    """What a method may ask of the house before it builds its model. The data are opened when they are asked for.

    Attributes:
      train: opens the training data. Raises ValueError where they are not there.
      read_config: the config of the run in a work directory. Raises ValueError where there is none.
      count_classes: the number of classes of the data of another config; None where they have no labels.
      load: (network, parameters) of a folder in the layout of diffusers, `hub.load`.
    """

    train: Callable[[], data.Source]
    read_config: Callable[[Path], Config]
    count_classes: Callable[[Config], int | None]
    load: Callable[..., tuple[nn.Module, Any]]

    @property
    def num_classes(self) -> int | None:
        """Of the training data; None where they have no labels."""
        return self.train().num_classes

    @property
    def record(self) -> Mapping[str, Any]:
        """What latents say of themselves, such as "mean", "std" and "vae"; {} of images."""
        return getattr(self.train(), "record", {})


class Method:
    """A method: its sections of the config with their checks, its model, and what is its own in the jobs.

    Attributes:
      settings: a constructor (a dataclass that checks itself) of the fields of `config.method` beside its name.
      sections: the sections of the config that runs of the method have, in this order. A `Variants` is one of its own;
        True is one that the config knows: data, method, training, optimizer, ema, posthoc_ema, mesh; the name of one
        that the config knows is another one like it (a second optimiser). Runs of every method need data, method,
        training, optimizer, ema, mesh, a sampling whose common fields are `settings.Sampling`, and an evaluation that
        is a `settings.Evaluation`.
      optimizers: part of the parameters -> the section of its optimiser. A method with one loss has one part, "".
      shows: names of the files that `pictures` writes.
      jobs: functions of a `Run` in the place of the jobs "sample" and "evaluate", for a method whose model draws no
        images; they leave the same files.
    """

    settings: ClassVar[Constructor]
    sections: ClassVar[Mapping[str, Variants | bool | str]]
    optimizers: ClassVar[Mapping[str, str]] = types.MappingProxyType({"": "optimizer"})
    shows: ClassVar[Sequence[str]] = ()
    jobs: ClassVar[Mapping[str, Callable[[Any], None]]] = types.MappingProxyType({})

    def check(self, config: Config) -> None:
        """Raises ValueError, in one line, for sections that are right on their own but not together."""

    def shrink(self, config: Config) -> None:
        """Makes a small experiment of a config, in place: see `diffusion_jax.config.quick`."""

    def needs_labels(self, config: Config) -> str | None:
        """Why the data have to have labels, as "config.method.class_conditional is True"; None if they need not."""
        return None

    def build(self, config: Config, context: Context) -> Any:
        """The model. Raises ValueError, in one line that names the field, for what cannot be."""
        raise NotImplementedError

    def decoder(self, config: Config, model: Any, context: Context) -> Any:
        """From what the model draws to images, a `latents.Decoder`; None where that is images already."""
        return None

    def given(self, run: Run) -> Any:
        """What `Drawing.draw` takes beside parameters: scales of guidance, parameters of a guide; a tree of arrays."""
        del run
        return ()

    def drawn(self, run: Run) -> Mapping[str, Any]:
        """How images are drawn, for sampling.json, a sweep and the report; "network_evaluations_per_image" among it."""
        del run
        return {"network_evaluations_per_image": 1}

    def protocol(self, run: Run) -> Mapping[str, Any]:
        """How images were drawn, for the protocol of the scores."""
        del run
        return {}

    def ways(self, run: Run) -> Iterable[Config]:
        """Configs that draw from the same parameters in other ways, which evaluate also scores."""
        del run
        return ()

    def drawn_by(self, model: Any, config: Config) -> Any:
        """The model as it draws by another config of `ways`."""
        del config
        return model

    def pictures(self, run: Run, labels: np.ndarray | None, frames: np.ndarray, captions: Sequence[str]) -> None:
        """Writes what the method shows beside samples.png and sampling.gif.

        labels, frames: of samples.png's images, [N] and [frames, N, ...], decoded; captions: of the frames.
        """

    def scores(self, run: Run) -> Mapping[str, Any]:
        """Entries of evaluation.json beside the scores of the images, each with its protocol."""
        del run
        return {}

    def summary(self, run: Run, drawn: Mapping[str, Any]) -> tuple[str, str]:
        """("a class-conditional ... model", ", and sampled with ..."), around what it was trained on, for the report.

        drawn: what `drawn` said when the pictures were made.
        """
        del run, drawn
        return "a model", ""

    def page(self, run: Run, drawn: Mapping[str, Any], pictures: Mapping[str, Path]) -> Mapping[str, Any]:
        """Further fields of `figures.report.Report`: the sections that are the method's own.

        pictures: those of "sampling.gif" and `shows` that are there.
        """
        del run, drawn
        if "sampling.gif" not in pictures:
            return {}
        caption = "The frames of the images, all at once; the bar shows how far it is."
        animation = report.animated(pictures["sampling.gif"], "An animation of the images", caption)
        return {"after_training": {"sampling": ("How images are drawn", animation)}}

    def write_report(
        self, run: Run, basics: Mapping[str, Any], drawn: Mapping[str, Any], pictures: Mapping[str, Path]
    ) -> None:
        """Writes report.html. basics: the fields of `figures.report.Report` that every run has."""
        content = report.Report(**{**basics, **self.page(run, drawn, pictures)})
        report.write_report(run.workdir / "report.html", content)
