"""What the hub needs to know of one kind of checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.hub.tensors import Shapes, Tensor, flatten

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A layout of config.json and tensors, in both directions.

    Attributes:
      name: how :func:`diffusion_jax.hub.save` calls it.
      covers: the class there and its library, for messages.
      model_class: the network it is a layout of.
      stem: file name of the weights without .safetensors.
      matches: whether a config.json is of this format.
      build: (config, compute dtype) -> network; raises CheckpointError for settings it does not cover.
      describe: (network, shapes) -> config; the inverse of build, raises CheckpointError likewise.
      inputs: (network, config) -> keyword arguments for its initialisation.
      tensors: (network, shapes, config) -> every tensor of the file.
      rename: tensor name in an old file -> today's name.
      ignores: whether a tensor of that name holds no parameter (a constant that the file happens to store).
      complete: (config, tensors) -> config with what only the tensors tell.
    """

    name: str
    covers: str
    model_class: type[nn.Module]
    stem: str
    matches: Callable[[Config], bool]
    build: Callable[[Config, DTypeLike], nn.Module]
    describe: Callable[[Any, Shapes], dict[str, Any]]
    inputs: Callable[[Any, Config], dict[str, Any]]
    tensors: Callable[[Any, Shapes, Config], Sequence[Tensor]]
    rename: Callable[[str], str] = str
    ignores: Callable[[str], bool] = lambda name: False
    complete: Callable[[Config, Mapping[str, np.ndarray]], Config] = lambda config, tensors: config


def parameter_shapes(model: nn.Module, inputs: Mapping[str, Any]) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of all parameters by path, without computing any."""
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
    return {path: leaf.shape for path, leaf in flatten(variables["params"]).items()}
