"""diffusers' FluxTransformer2DModel: Flux dev and schnell."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.hub import diffusers
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Shapes
from diffusion_jax.models.flux import FluxTransformer

CLASS = "FluxTransformer2DModel"
# FluxTransformer2DModel's own defaults
DEFAULTS: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 64,
    "out_channels": None,
    "num_layers": 19,
    "num_single_layers": 38,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": False,
    "axes_dims_rope": [16, 56, 56],
}


def build(config: Config, dtype: DTypeLike) -> FluxTransformer:
    c = DEFAULTS | dict(config)
    diffusers.check_covered(CLASS, c, {"patch_size": (1,)})
    return FluxTransformer(
        out_channels=c["in_channels"] if c["out_channels"] is None else c["out_channels"],
        depth=c["num_layers"],
        single_depth=c["num_single_layers"],
        num_heads=c["num_attention_heads"],
        head_width=c["attention_head_dim"],
        rotary_widths=tuple(c["axes_dims_rope"]),
        guidance=c["guidance_embeds"],
        dtype=dtype,
    )


def describe(model: FluxTransformer, shapes: Shapes) -> dict[str, Any]:
    channels = shapes[("x_embedder", "kernel")][0]
    return DEFAULTS | {
        "_class_name": CLASS,
        "in_channels": channels,
        "out_channels": None if model.out_channels == channels else model.out_channels,
        "num_layers": model.depth,
        "num_single_layers": model.single_depth,
        "attention_head_dim": model.head_width,
        "num_attention_heads": model.num_heads,
        "joint_attention_dim": shapes[("context_embedder", "kernel")][0],
        "pooled_projection_dim": shapes[("time_text_embed", "text_embedder", "linear_1", "kernel")][0],
        "guidance_embeds": model.guidance,
        "axes_dims_rope": list(model.rotary_widths),
    }


def inputs(model: FluxTransformer, config: Config) -> dict[str, Any]:
    c = DEFAULTS | dict(config)
    return {
        "hidden_states": jnp.zeros((1, 1, c["in_channels"])),
        "timestep": jnp.zeros((1,)),
        "encoder_hidden_states": jnp.zeros((1, 1, c["joint_attention_dim"])),
        "pooled_projections": jnp.zeros((1, c["pooled_projection_dim"])),
        "img_ids": jnp.zeros((1, len(model.rotary_widths))),
        "txt_ids": jnp.zeros((1, len(model.rotary_widths))),
        "guidance": jnp.zeros((1,)) if model.guidance else None,
    }


FORMAT = Format(
    name="diffusers",
    covers=f"{CLASS} (diffusers)",
    model_class=FluxTransformer,
    stem=diffusers.STEM,
    matches=lambda config: config.get("_class_name") == CLASS,
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=diffusers.tensors,
    defaults=DEFAULTS,
)
