"""diffusers' SD3Transformer2DModel: Stable Diffusion 3 and 3.5.

The file also holds the table of positions. Where it is the one of the formula, the network computes what it needs of
it; any other is kept as a parameter.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.hub import diffusers
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Shapes, Tensor, leaf_name, parameter
from diffusion_jax.models.mmdit import MMDiT, position_table

CLASS = "SD3Transformer2DModel"
POSITIONS = "pos_embed.pos_embed"
STORED = "stored_positions"  # what `completed` adds to the config
# SD3Transformer2DModel's own defaults
DEFAULTS: dict[str, Any] = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 18,
    "attention_head_dim": 64,
    "num_attention_heads": 18,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1152,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 96,
    "dual_attention_layers": [],
    "qk_norm": None,
}


def build(config: Config, dtype: DTypeLike) -> MMDiT:
    c = DEFAULTS | dict(config)
    diffusers.check_covered(CLASS, c, {"qk_norm": (None, "rms_norm")})
    return MMDiT(dtype=dtype, **fields(CLASS, c))


def fields(class_name: str, c: Config) -> dict[str, Any]:
    """The fields that the transformer and its ControlNet have in common."""
    width = c["num_attention_heads"] * c["attention_head_dim"]
    if c["caption_projection_dim"] != width:
        raise diffusers.not_covered(class_name, "caption_projection_dim", c["caption_projection_dim"], f"{width}")
    return {
        "out_channels": c["in_channels"] if c["out_channels"] is None else c["out_channels"],
        "patch_size": c["patch_size"],
        "depth": c["num_layers"],
        "num_heads": c["num_attention_heads"],
        "head_width": c["attention_head_dim"],
        "qk_norm": c["qk_norm"] is not None,
        "dual_attention": tuple(c["dual_attention_layers"]),
        "sample_size": c["sample_size"],
        "position_grid": c["pos_embed_max_size"],
        "stored_positions": c.get(STORED, False),
    }


def completed(build: Callable[[Config, DTypeLike], MMDiT]) -> Callable[[Config, Mapping[str, np.ndarray]], Config]:
    """A function that adds to a config whether the file's positions are its own."""

    def complete(config: Config, tensors: Mapping[str, np.ndarray]) -> Config:
        stored = tensors.get(POSITIONS)
        if stored is None:
            return config
        model = build(config, "float32")
        if stored.shape != _formula(model).shape:  # it does not fit, which the list of tensors will say
            return config
        difference = np.abs(stored.astype(np.float32) - position_table(model)[None]).max()
        # half-precision files hold the same numbers to their own rounding
        return {**config, STORED: not difference < (1e-4 if stored.dtype == np.float32 else 5e-3)}

    return complete


def describe(model: MMDiT, shapes: Shapes) -> dict[str, Any]:
    return DEFAULTS | {
        "_class_name": CLASS,
        "sample_size": model.sample_size,
        "patch_size": model.patch_size,
        "in_channels": shapes[("patch_embedding", "kernel")][2],
        "num_layers": model.depth,
        "attention_head_dim": model.head_width,
        "num_attention_heads": model.num_heads,
        "joint_attention_dim": shapes[("context_embedder", "kernel")][0],
        "caption_projection_dim": model.num_heads * model.head_width,
        "pooled_projection_dim": shapes[("time_text_embed", "text_embedder", "linear_1", "kernel")][0],
        "out_channels": model.out_channels,
        "pos_embed_max_size": model.position_grid,
        "dual_attention_layers": list(model.dual_attention),
        "qk_norm": "rms_norm" if model.qk_norm else None,
    }


def inputs(model: MMDiT, config: Config) -> dict[str, Any]:
    c = DEFAULTS | dict(config)
    return {
        "hidden_states": jnp.zeros((1, model.patch_size, model.patch_size, c["in_channels"])),
        "timestep": jnp.zeros((1,)),
        "encoder_hidden_states": jnp.zeros((1, 1, c["joint_attention_dim"])),
        "pooled_projections": jnp.zeros((1, c["pooled_projection_dim"])),
    }


def tensors(model: MMDiT, shapes: Shapes, config: Config) -> list[Tensor]:
    layout = [] if model.stored_positions else [_formula(model)]
    for path, shape in shapes.items():
        if path[0] == "positions":
            layout.append(parameter(POSITIONS, path, shape))
        elif path[0] == "patch_embedding":
            layout.append(parameter(f"pos_embed.proj.{leaf_name(path)}", path, shape))
        else:
            layout.append(parameter(diffusers.tensor_name(path), path, shape))
    return layout


def _formula(model: MMDiT) -> Tensor:
    """The table of positions, which no parameter holds; files without it are read too."""

    def pack(values: Sequence[np.ndarray]) -> np.ndarray:
        return position_table(model)[None].astype(np.float32)

    shape = (1, model.position_grid**2, model.num_heads * model.head_width)
    return Tensor(POSITIONS, shape, (), lambda tensor: (), pack, optional=True)


FORMAT = Format(
    name="diffusers",
    covers=f"{CLASS} (diffusers)",
    model_class=MMDiT,
    stem=diffusers.STEM,
    matches=lambda config: config.get("_class_name") == CLASS,
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=tensors,
    complete=completed(build),
    defaults=DEFAULTS,
)
