"""Loading and saving of networks in the folder layouts of other libraries."""

from pathlib import Path
from typing import Any

from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.hub import (
    autoencoder,
    conditional_unet,
    dit,
    edm,
    edm2,
    flux,
    mmdit,
    openai_unet,
    tiny_autoencoder,
    unet2d,
)
from diffusion_jax.hub.files import CheckpointError, read_config, read_tensors, write_config, write_tensors
from diffusion_jax.hub.format import Config, Format, parameter_shapes
from diffusion_jax.hub.tensors import flatten, from_params, to_params

FORMATS: tuple[Format, ...] = (
    unet2d.FORMAT,
    dit.FORMAT,
    dit.ORIGINAL_FORMAT,
    mmdit.FORMAT,
    flux.FORMAT,
    edm.FORMAT,
    edm2.FORMAT,
    openai_unet.FORMAT,
    conditional_unet.UNET_FORMAT,
    conditional_unet.CONTROLNET_FORMAT,
    autoencoder.FORMAT,
    tiny_autoencoder.FORMAT,
)


def load(directory: str | Path, *, dtype: DTypeLike = "float32") -> tuple[nn.Module, dict[str, Any]]:
    """Opens a model folder: config.json and .safetensors weights, in one file or in shards.

    Args:
      directory: the folder, for example ``unet`` of a diffusers pipeline.
      dtype: what the network computes in; the parameters are float32 whatever the file holds.

    Returns:
      The network and its parameters: ``model.apply({"params": params}, sample=x, timestep=t)``, the keywords of
      the original's ``forward()``, images channels last.

    Raises:
      CheckpointError: a ValueError that names the file, what is wrong and what is covered; tensors that are
        missing, left over or of the wrong shape are all listed.
    """
    directory = Path(directory)
    config: Config = read_config(directory)
    format_ = _format_of(config, directory)
    stored = read_tensors(directory, format_.stem)
    tensors = {format_.rename(name): value for name, value in stored.items() if not format_.ignores(name)}
    try:
        config = format_.complete(config, tensors)
        model = format_.build(config, dtype)
        inputs = format_.inputs(model, config)
        shapes = parameter_shapes(model, inputs)
    except KeyError as error:
        raise CheckpointError(f"{directory / 'config.json'}: the setting {error} is missing") from None
    except ValueError as error:
        raise CheckpointError(f"{directory / 'config.json'}: {error}") from None
    layout = format_.tensors(model, shapes, config)
    return model, to_params(layout, tensors, where=str(directory))


def save(model: nn.Module, params: Any, directory: str | Path, *, format: str | None = None) -> None:
    """Writes the network as config.json and one .safetensors file, the inverse of :func:`load`.

    Args:
      model: the network.
      params: its parameters; written as float32.
      directory: made if missing; files of the same names are replaced.
      format: name of a layout ("diffusers", "guided-diffusion", "original"); None takes the first for this class of
        network.

    Raises:
      CheckpointError: no such layout, or settings that it cannot express.
    """
    directory = Path(directory)
    known = [candidate for candidate in FORMATS if isinstance(model, candidate.model_class)]
    if not known:
        raise CheckpointError(f"{type(model).__name__}: no layout of another library holds this network")
    chosen = [candidate for candidate in known if format in (None, candidate.name)]
    if not chosen:
        choices = " or ".join(repr(candidate.name) for candidate in known)
        raise CheckpointError(f"format={format!r}: {type(model).__name__} can be saved as {choices}")
    shapes = {path: leaf.shape for path, leaf in flatten(params).items()}
    config = chosen[0].describe(model, shapes)
    tensors = from_params(chosen[0].tensors(model, shapes, config), params)
    write_config(directory, config)
    write_tensors(directory, chosen[0].stem, tensors)


def _format_of(config: Config, directory: Path) -> Format:
    for candidate in FORMATS:
        if candidate.matches(config):
            return candidate
    got = config.get("_class_name") or config.get("architectures")
    covered = ", ".join(candidate.covers for candidate in FORMATS)
    raise CheckpointError(f"{directory / 'config.json'}: describes {got or 'no known network'}; covered are {covered}")
