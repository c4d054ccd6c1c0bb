"""What the hub needs to know of one kind of checkpoint."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.hub import plausible
from diffusion_jax.hub.files import CheckpointError, refusal
from diffusion_jax.hub.tensors import Shapes, Tensor, flatten

Config = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
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
      defaults: of the settings, which also tell their kinds; none where every file states them all.
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
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def network(
        self, config: Config, tensors: Mapping[str, np.ndarray], dtype: DTypeLike, where: Path
    ) -> tuple[nn.Module, Sequence[Tensor]]:
        """The network of a file's settings, and the tensors that it needs; nothing of its size is computed.

        Args:
          config: the settings.
          tensors: of the file, by today's names.
          dtype: of the computation.
          where: the settings' file, for the error.

        Raises:
          CheckpointError: settings that cannot be, or are not covered; one line of at most 300 characters.
        """
        try:
            plausible.check_settings(config, self.defaults)
            plausible.check_counts(config, tensors)
            settings = self.complete(config, tensors)
            model = self.build(settings, dtype)
            shapes = parameter_shapes(model, lambda: self.inputs(model, settings))
            return model, self.tensors(model, shapes, settings)
        except KeyError as error:
            raise CheckpointError(f"{where}: the setting {error!s:.80} is missing") from None
        except Exception as error:  # settings of any type and size arrive at constructors, NumPy and XLA
            raise CheckpointError(f"{where}: {refusal(error)}") from None


def parameter_shapes(
    model: nn.Module, inputs: Callable[[], Mapping[str, Any]]
) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Shapes of all parameters by path, for the inputs that a function gives, without computing any."""
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs()))
    return {path: leaf.shape for path, leaf in flatten(variables["params"]).items()}
