"""diffusers' UNet2DConditionModel and ControlNetModel, in the variants of Stable Diffusion 1, 2 and XL."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.hub import diffusers
from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Shapes
from diffusion_jax.models.conditional_unet import ConditionalTrunk, ConditionalUNet
from diffusion_jax.models.controlnet import ControlNet

UNET, CONTROLNET = "UNet2DConditionModel", "ControlNetModel"
CROSS, MIDDLE = "CrossAttn", "UNetMidBlock2DCrossAttn"
DOWN, UP = "DownBlock2D", "UpBlock2D"
# The defaults of both classes, for files that do not state every setting
COMMON: dict[str, Any] = {
    "in_channels": 4,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": [CROSS + DOWN] * 3 + [DOWN],
    "mid_block_type": MIDDLE,
    "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "use_linear_projection": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
    "projection_class_embeddings_input_dim": None,
    "addition_embed_type_num_heads": 64,
}
UNET_DEFAULTS = COMMON | {
    "sample_size": None,
    "out_channels": 4,
    "center_input_sample": False,
    "up_block_types": [UP] + [CROSS + UP] * 3,
    "dropout": 0.0,
    "reverse_transformer_layers_per_block": None,
    "dual_cross_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
CONTROLNET_DEFAULTS = COMMON | {
    "conditioning_channels": 3,
    "controlnet_conditioning_channel_order": "rgb",
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "global_pool_conditions": False,
}
# What may differ from the defaults; any other setting that does is refused.
FREE = {
    "in_channels", "out_channels", "sample_size", "flip_sin_to_cos", "freq_shift", "down_block_types",
    "up_block_types", "block_out_channels", "layers_per_block", "downsample_padding", "act_fn", "norm_num_groups",
    "norm_eps", "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim", "use_linear_projection",
    "addition_embed_type", "addition_time_embed_dim", "num_class_embeds", "upcast_attention", "dropout",
    "projection_class_embeddings_input_dim", "addition_embed_type_num_heads", "conditioning_channels",
    "controlnet_conditioning_channel_order", "conditioning_embedding_out_channels", "only_cross_attention",
    "mid_block_type", "mid_block_scale_factor", "class_embed_type", "resnet_time_scale_shift", "center_input_sample",
    "time_cond_proj_dim", "reverse_transformer_layers_per_block", "global_pool_conditions",
}  # fmt: skip
# our names of what has names there
MID_BLOCKS = {MIDDLE: "attention", "UNetMidBlock2D": "resnet", None: "none"}
CLASS_EMBEDDINGS = {None: "table", "timestep": "timestep", "projection": "projection", "simple_projection": "linear"}
SCALE_SHIFT = {"default": False, "scale_shift": True}
CHOICES: dict[str, tuple[Any, ...]] = {
    "act_fn": diffusers.ACTIVATIONS,
    "mid_block_type": tuple(MID_BLOCKS),
    "class_embed_type": tuple(CLASS_EMBEDDINGS),
    "resnet_time_scale_shift": tuple(SCALE_SHIFT),
    "center_input_sample": (False, True),
    "global_pool_conditions": (False, True),
    "addition_embed_type": (None, "text_time"),
    "controlnet_conditioning_channel_order": ("rgb", "bgr"),
}
# settings that are fields of the network under another name
FIELDS = {
    "use_linear_projection": "linear_projection",
    "addition_time_embed_dim": "time_ids_channels",
    "num_class_embeds": "num_classes",
    "norm_num_groups": "norm_groups",
    "norm_eps": "norm_eps",
    "flip_sin_to_cos": "flip_sin_to_cos",
    "freq_shift": "freq_shift",
    "downsample_padding": "downsample_padding",
    "upcast_attention": "upcast_attention",
    "mid_block_scale_factor": "mid_scale",
}


def build_unet(config: Config, dtype: DTypeLike) -> ConditionalUNet:
    c = UNET_DEFAULTS | dict(config)
    fields = _trunk(UNET, c, UNET_DEFAULTS)
    expected = [(CROSS if here else "") + UP for here in reversed(fields["attention"])]
    if list(c["up_block_types"]) != expected:
        choices = f"{', '.join(expected)}, the mirror of down_block_types"
        raise diffusers.not_covered(UNET, "up_block_types", c["up_block_types"], choices)
    size, reverse = c["sample_size"], "reverse_transformer_layers_per_block"
    return ConditionalUNet(
        out_channels=c["out_channels"],
        up_transformer_depth=None if c[reverse] is None else _depths(UNET, c, reverse)[::-1],
        guidance_channels=c["time_cond_proj_dim"],
        center_input=c["center_input_sample"],
        sample_size=size[0] if isinstance(size, list) else size,
        dropout=c["dropout"],
        dtype=dtype,
        **fields,
    )


def build_controlnet(config: Config, dtype: DTypeLike) -> ControlNet:
    c = CONTROLNET_DEFAULTS | dict(config)
    return ControlNet(
        hint_widths=tuple(c["conditioning_embedding_out_channels"]),
        bgr=c["controlnet_conditioning_channel_order"] == "bgr",
        global_pool=c["global_pool_conditions"],
        sample_size=None,
        dtype=dtype,
        **_trunk(CONTROLNET, c, CONTROLNET_DEFAULTS),
    )


def describe_unet(model: ConditionalUNet, shapes: Shapes) -> dict[str, Any]:
    up_depth = model.up_transformer_depth
    return UNET_DEFAULTS | {
        "_class_name": UNET,
        "sample_size": model.sample_size,
        "out_channels": model.out_channels,
        "reverse_transformer_layers_per_block": up_depth and list(reversed(up_depth)),
        "time_cond_proj_dim": model.guidance_channels,
        "center_input_sample": model.center_input,
        "up_block_types": [(CROSS if here else "") + UP for here in reversed(model.attention)],
        "dropout": model.dropout,
        **_describe_trunk(model, shapes),
    }


def describe_controlnet(model: ControlNet, shapes: Shapes) -> dict[str, Any]:
    return CONTROLNET_DEFAULTS | {
        "_class_name": CONTROLNET,
        "conditioning_channels": shapes[("controlnet_cond_embedding", "conv_in", "kernel")][2],
        "controlnet_conditioning_channel_order": "bgr" if model.bgr else "rgb",
        "global_pool_conditions": model.global_pool,
        "conditioning_embedding_out_channels": list(model.hint_widths),
        **_describe_trunk(model, shapes),
    }


def inputs_unet(model: ConditionalTrunk, config: Config) -> dict[str, Any]:
    c = COMMON | dict(config)
    side = 2 ** (len(model.widths) - 1)
    context = diffusers.all_levels(UNET, c, "cross_attention_dim", len(model.widths))
    values: dict[str, Any] = {
        "sample": jnp.zeros((1, side, side, c["in_channels"])),
        "timestep": jnp.zeros((1,)),
        "encoder_hidden_states": jnp.zeros((1, 1, context)),
        "class_labels": _no_classes(model, c),
    }
    if model.guidance_channels is not None:
        values["timestep_cond"] = jnp.zeros((1, model.guidance_channels))
    if model.time_ids_channels is not None:
        pooled = c["projection_class_embeddings_input_dim"] - 6 * model.time_ids_channels
        conditions = {"text_embeds": jnp.zeros((1, pooled)), "time_ids": jnp.zeros((1, 6))}
        values["added_cond_kwargs"] = conditions
    return values


def _no_classes(model: ConditionalTrunk, c: Mapping[str, Any]) -> Any:
    """Labels of the kind that the network takes."""
    if model.class_embedding == "table":
        return None if model.num_classes is None else jnp.zeros((1,), jnp.int32)
    if model.class_embedding == "timestep":
        return jnp.zeros((1,))
    return jnp.zeros((1, c["projection_class_embeddings_input_dim"]))


def inputs_controlnet(model: ControlNet, config: Config) -> dict[str, Any]:
    side = 2 ** (len(model.widths) + len(model.hint_widths) - 2)
    channels = config.get("conditioning_channels", CONTROLNET_DEFAULTS["conditioning_channels"])
    return inputs_unet(model, config) | {"controlnet_cond": jnp.zeros((1, side, side, channels))}


def _trunk(class_name: str, c: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ConditionalTrunk that the config states."""
    fixed = {field: (value,) for field, value in defaults.items() if field not in FREE}
    diffusers.check_covered(class_name, c, fixed | {field: CHOICES[field] for field in CHOICES if field in c})
    levels = len(c["block_out_channels"])
    if class_name == CONTROLNET and c["mid_block_type"] is None:
        raise diffusers.not_covered(class_name, "mid_block_type", None, f"{MIDDLE!r} or 'UNetMidBlock2D'")
    kind = CLASS_EMBEDDINGS[c["class_embed_type"]]
    if kind in ("projection", "linear") and c["projection_class_embeddings_input_dim"] is None:
        raise CheckpointError(f"class_embed_type={c['class_embed_type']!r} needs projection_class_embeddings_input_dim")
    only_text = tuple(diffusers.each_level(class_name, c, "only_cross_attention", levels))
    known = {DOWN: False, CROSS + DOWN: True}
    for block in c["down_block_types"]:
        if block not in known:
            raise diffusers.not_covered(class_name, "down_block_types", block, " or ".join(known))
    if (c["addition_embed_type"] is None) != (c["addition_time_embed_dim"] is None):
        raise CheckpointError(
            f"addition_embed_type={c['addition_embed_type']!r} with addition_time_embed_dim="
            f"{c['addition_time_embed_dim']!r}: {class_name} is covered with both or neither"
        )
    return {
        "widths": tuple(c["block_out_channels"]),
        "num_res_blocks": diffusers.all_levels(class_name, c, "layers_per_block", levels),
        "attention": tuple(known[block] for block in c["down_block_types"]),
        "transformer_depth": _depths(class_name, c, "transformer_layers_per_block"),
        "only_cross_attention": only_text if any(only_text) else (),
        "mid_block": MID_BLOCKS[c["mid_block_type"]],
        "class_embedding": kind,
        "activation": diffusers.activation(c["act_fn"]),
        "scale_shift_norm": SCALE_SHIFT[c["resnet_time_scale_shift"]],
        # what the file calls the width of a head is the number of heads
        "num_heads": tuple(diffusers.each_level(class_name, c, "attention_head_dim", levels)),
        **{here: c[there] for there, here in FIELDS.items()},
        # a number of classes means nothing to embeddings that have no table
        "num_classes": c["num_class_embeds"] if kind == "table" else None,
    }


def _depths(class_name: str, c: Mapping[str, Any], field: str) -> tuple[int, ...]:
    depths = diffusers.each_level(class_name, c, field, len(c["block_out_channels"]))
    if not all(isinstance(depth, int) for depth in depths):
        raise diffusers.not_covered(class_name, field, depths, "one number a level")
    return tuple(depths)


def _describe_trunk(model: ConditionalTrunk, shapes: Shapes) -> dict[str, Any]:
    pooled = shapes.get(("add_embedding", "linear_1", "kernel"))
    layer = {"projection": ("linear_1", "kernel"), "linear": ("kernel",)}.get(model.class_embedding, ("",))
    vectors = pooled or shapes.get(("class_embedding", *layer))
    context = next((shape[0] for path, shape in shapes.items() if path[-3:] == ("attn2", "to_k", "kernel")), None)
    return {
        "in_channels": shapes[("conv_in", "kernel")][2],
        "down_block_types": [(CROSS if here else "") + DOWN for here in model.attention],
        "block_out_channels": list(model.widths),
        "layers_per_block": model.num_res_blocks,
        "cross_attention_dim": context,
        "transformer_layers_per_block": _short(model.transformer_depth),
        "attention_head_dim": _short(model.num_heads),
        "addition_embed_type": None if pooled is None else "text_time",
        "projection_class_embeddings_input_dim": None if vectors is None else vectors[0],
        "class_embed_type": _name(CLASS_EMBEDDINGS, model.class_embedding),
        "mid_block_type": _name(MID_BLOCKS, model.mid_block),
        "only_cross_attention": _short(model.only_cross_attention or (False,)),
        "act_fn": model.activation,
        "resnet_time_scale_shift": _name(SCALE_SHIFT, model.scale_shift_norm),
        **{there: getattr(model, here) for there, here in FIELDS.items()},
    }


def _name(names: Mapping[Any, Any], value: Any) -> Any:
    """The inverse of MID_BLOCKS and its like."""
    return next(there for there, here in names.items() if here == value)


def _short(values: tuple[int, ...]) -> int | list[int]:
    return values[0] if len(set(values)) == 1 else list(values)


UNET_FORMAT = Format(
    name="diffusers",
    covers=f"{UNET} (diffusers)",
    model_class=ConditionalUNet,
    stem=diffusers.STEM,
    matches=lambda config: config.get("_class_name") == UNET,
    build=build_unet,
    describe=describe_unet,
    inputs=inputs_unet,
    tensors=diffusers.tensors,
    rename=diffusers.rename,
    defaults=UNET_DEFAULTS,
)
CONTROLNET_FORMAT = Format(
    name="diffusers",
    covers=f"{CONTROLNET} (diffusers)",
    model_class=ControlNet,
    stem=diffusers.STEM,
    matches=lambda config: config.get("_class_name") == CONTROLNET,
    build=build_controlnet,
    describe=describe_controlnet,
    inputs=inputs_controlnet,
    tensors=diffusers.tensors,
    rename=diffusers.rename,
    defaults=CONTROLNET_DEFAULTS,
)
