"""What the layouts of diffusers' networks have in common: names of tensors, and settings that are covered."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.format import Config
from diffusion_jax.hub.tensors import Path, Shapes, Tensor, leaf_name, parameter
from diffusion_jax.models import layers

STEM = "diffusion_pytorch_model"
ACTIVATIONS = (*layers.ACTIVATIONS, "swish")
# modules that stand in a list there; other trailing numbers (linear_1) belong to the name
LISTS = (
    "down_blocks|up_blocks|resnets|attentions|downsamplers|upsamplers|to_out|transformer_blocks|net|blocks"
    "|controlnet_down_blocks|controlnet_blocks|single_transformer_blocks"
)
INDEXED = re.compile(rf"^({LISTS})_(\d+)$")
# names of the attention layers before diffusers 0.12
OLD_NAMES = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def activation(name: str) -> str:
    """Our name of one of ACTIVATIONS."""
    return "silu" if name == "swish" else name


def module_name(path: Path) -> str:
    """down_blocks_0/resnets_1/conv1 -> down_blocks.0.resnets.1.conv1"""
    return ".".join(INDEXED.sub(r"\1.\2", part) for part in path)


def tensor_name(path: Path) -> str:
    """down_blocks_0/resnets_1/conv1/kernel -> down_blocks.0.resnets.1.conv1.weight"""
    return f"{module_name(path[:-1])}.{leaf_name(path)}"


def tensors(model: Any, shapes: Shapes, config: Config) -> list[Tensor]:
    """The layout of a network whose modules are named as they are there."""
    return [parameter(tensor_name(path), path, shape) for path, shape in shapes.items()]


def rename(name: str) -> str:
    """Today's name of a tensor from an old file."""
    if ".attentions." in name:
        for old, new in OLD_NAMES:
            name = name.replace(f".{old}.", f".{new}.")
    return name


def check_covered(class_name: str, config: Config, covered: Mapping[str, Sequence[Any]]) -> None:
    """Raises CheckpointError for the first setting whose value is not on its list."""
    for field, choices in covered.items():
        if config[field] not in choices:
            raise not_covered(class_name, field, config[field], " or ".join(map(repr, choices)))


def not_covered(class_name: str, field: str, value: Any, choices: str) -> CheckpointError:
    return CheckpointError(f"{class_name} with {field}={value!r} is not covered; it could be {choices}")


def each_level(class_name: str, config: Config, field: str, levels: int) -> list[Any]:
    """A setting given once for all levels or once for each."""
    value = config[field]
    if not isinstance(value, list | tuple):
        return [value] * levels
    if len(value) != levels:
        raise not_covered(class_name, field, value, f"one value or {levels}, as in block_out_channels")
    return list(value)


def all_levels(class_name: str, config: Config, field: str, levels: int) -> Any:
    """A setting that must be the same at all levels."""
    values = each_level(class_name, config, field, levels)
    if len(set(values)) > 1:
        raise not_covered(class_name, field, config[field], "one value for all levels")
    return values[0]
