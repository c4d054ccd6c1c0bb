"""Stable Diffusion in one file (.safetensors, .ckpt), with the original names of its tensors."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.hub import autoencoder, compvis, conditional_unet, open_clip, text_encoders
from diffusion_jax.hub.files import CheckpointError, PickledFile, TensorFile, open_tensors, refusal
from diffusion_jax.hub.format import Config, Format, parameter_shapes
from diffusion_jax.hub.tensors import Shapes, Tensor, to_params

SUFFIXES = (".safetensors", ".ckpt")


@dataclass(frozen=True)
class Part:
    """One network of the file.

    Attributes:
      name: what :func:`load` calls it.
      prefixes: what its tensors' names begin with, one or the other.
      mark: name of a tensor (behind the prefix) that every such network has.
      settings: (shapes without the prefix, settings that the user states, family of the file's U-Net or None) ->
        config.json of ``format``.
      format: the layout that knows how to build it from that.
      tensors: (network, shapes, config) -> its tensors under the names that they have here.
      unused: (name, network) -> whether a tensor of the file is no parameter of this network.
    """

    name: str
    prefixes: tuple[str, ...]
    mark: str
    settings: Callable[[compvis.FileShapes, Config, str | None], dict[str, Any]]
    format: Format
    tensors: Callable[[Any, Shapes, Config], list[Tensor]]
    unused: Callable[[str, Any], bool] = lambda name, model: False


UNET = Part(
    name="unet",
    prefixes=("model.diffusion_model.", ""),
    mark="input_blocks.0.0.weight",
    settings=lambda shapes, given, family: compvis.unet_config(shapes, given),
    format=conditional_unet.UNET_FORMAT,
    tensors=compvis.unet_tensors,
)
PARTS = (
    UNET,
    Part(
        name="vae",
        prefixes=("first_stage_model.", ""),
        mark="encoder.down.0.block.0.conv1.weight",
        settings=compvis.vae_config,
        format=autoencoder.FORMAT,
        tensors=compvis.vae_tensors,
    ),
    Part(  # Stable Diffusion 1, and the first of SDXL
        name="text_encoder",
        prefixes=("cond_stage_model.transformer.", "conditioner.embedders.0.transformer."),
        mark=open_clip.TRANSFORMERS,
        settings=lambda shapes, given, family: open_clip.transformers_config(shapes, given),
        format=text_encoders.CLIP_FORMAT,
        tensors=open_clip.transformers_tensors,
        unused=open_clip.is_unused,
    ),
    Part(  # Stable Diffusion 2
        name="text_encoder",
        prefixes=("cond_stage_model.model.",),
        mark=open_clip.OPEN_CLIP,
        settings=lambda shapes, given, family: open_clip.open_clip_config(shapes, given, projected=False),
        format=text_encoders.CLIP_FORMAT,
        tensors=open_clip.open_clip_tensors,
        unused=open_clip.is_unused,
    ),
    Part(  # SDXL
        name="text_encoder_2",
        prefixes=("conditioner.embedders.1.model.",),
        mark=open_clip.OPEN_CLIP,
        settings=lambda shapes, given, family: open_clip.open_clip_config(shapes, given, projected=True),
        format=text_encoders.CLIP_FORMAT,
        tensors=open_clip.open_clip_tensors,
        unused=open_clip.is_unused,
    ),
)


def load(
    path: Path, part: str | None, dtype: DTypeLike, param_dtype: DTypeLike, config: Config
) -> tuple[nn.Module, dict[str, Any]]:
    """One network of the file, see :func:`diffusion_jax.hub.load`; ``config`` overrules what the shapes suggest."""
    with open_tensors(path) as file:
        return load_part(file, part, dtype, param_dtype, config)


def is_file(path: Path) -> bool:
    """Whether a path names such a file, there or not, and not a folder."""
    return path.suffix in SUFFIXES and not path.is_dir()


def load_part(
    file: TensorFile | PickledFile, part: str | None, dtype: DTypeLike, param_dtype: DTypeLike, config: Config
) -> tuple[nn.Module, dict[str, Any]]:
    """As :func:`load`, of an open file."""
    path, all_shapes = file.path, file.shapes
    there = parts_of(all_shapes)
    if not there:
        raise CheckpointError(
            f"{path}: none of its tensors has a name of Stable Diffusion's, such as"
            f" {UNET.prefixes[0]}{UNET.mark}; a model folder is opened by the folder's name"
        )
    if part is None and len(there) == 1:
        part = next(iter(there))
    if part not in there:
        raise CheckpointError(f"{path}: part={part!r}; this file holds {', '.join(map(repr, there))}")
    chosen, prefix = there[part]
    shapes = {name.removeprefix(prefix): shape for name, shape in all_shapes.items() if name.startswith(prefix)}
    try:
        settings = chosen.settings(shapes, config, family(all_shapes))
        model = chosen.format.build(settings, dtype)
        network_shapes = parameter_shapes(model, functools.partial(chosen.format.inputs, model, settings))
    except Exception as error:  # as of a folder's config.json
        raise CheckpointError(f"{path}: {refusal(error)}") from None
    layout = chosen.tensors(model, network_shapes, settings)
    stored = file.tensors(prefix)
    used = {name: value for name, value in stored.items() if not chosen.unused(name, model)}
    del stored
    return model, to_params(layout, used, where=str(path), dtype=param_dtype)


def parts_of(shapes: compvis.FileShapes) -> dict[str, tuple[Part, str]]:
    """The networks that a file with these tensors holds, each with the prefix of its names."""
    found = {}
    for part in PARTS:
        prefixes = [prefix for prefix in part.prefixes if prefix + part.mark in shapes]
        found |= {part.name: (part, prefixes[0])} if prefixes else {}
    return found


def family(shapes: compvis.FileShapes) -> str | None:
    """Whose U-Net a file with these tensors holds, if any."""
    for prefix in UNET.prefixes:
        key = f"{prefix}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
        if key in shapes and shapes[key][1] in compvis.FAMILIES:
            return compvis.FAMILIES[shapes[key][1]][0]
    return None
