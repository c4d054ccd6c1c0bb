"""diffusers' UNet2DModel: ``google/ddpm-*`` and everything its unconditional training example wrote."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.hub import diffusers
from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Shapes
from diffusion_jax.models.unet import TIME_EMBEDDINGS, UNet, UNetEncoder

# UNet2DModel's own defaults, for the older files that do not state every setting
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
COVERED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False, True),
    "time_embedding_type": TIME_EMBEDDINGS,
    "mid_block_type": ("UNetMidBlock2D",),
    "downsample_type": ("conv", "resnet"),
    "downsample_padding": (0, 1),
    "act_fn": diffusers.ACTIVATIONS,
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}
# block type -> (attention behind every residual block, how it changes the resolution; None: as configured)
DOWN_BLOCKS = {
    "DownBlock2D": (False, "conv"),
    "ResnetDownsampleBlock2D": (False, "resnet"),
    "AttnDownBlock2D": (True, None),
}
UP_BLOCKS = {
    "UpBlock2D": (False, "conv"),
    "ResnetUpsampleBlock2D": (False, "resnet"),
    "AttnUpBlock2D": (True, None),
}
CLASS = "UNet2DModel"
PLAIN = {"activation": "silu", "mid_scale": 1, "time_embedding": "positional", "center_input": False}


def build(config: Config, dtype: DTypeLike) -> UNet:
    c = {**DEFAULTS, **config}
    diffusers.check_covered(CLASS, c, COVERED)
    widths = [int(width) for width in c["block_out_channels"]]
    channels, levels = widths[0], len(widths)
    if c["time_embedding_dim"] not in (None, 4 * channels):
        raise diffusers.not_covered(CLASS, "time_embedding_dim", c["time_embedding_dim"], f"null or {4 * channels}")
    attention, kind = _levels(c)
    if len(attention) != levels:
        raise diffusers.not_covered(
            CLASS, "down_block_types", c["down_block_types"], f"{levels} blocks, as in block_out_channels"
        )

    groups, scale_shift = c["norm_num_groups"], c["resnet_time_scale_shift"] == "scale_shift"
    if c["attn_norm_num_groups"] not in (None, groups):
        raise diffusers.not_covered(CLASS, "attn_norm_num_groups", c["attn_norm_num_groups"], f"null or {groups}")
    size = c["sample_size"][0] if isinstance(c["sample_size"], list) else c["sample_size"]
    if not isinstance(size, int) or size % 2 ** (levels - 1):
        size = 2 ** (levels - 1)  # any will do: it only translates between levels and resolutions
    return UNet(
        out_channels=c["out_channels"],
        channels=channels,
        channel_mults=tuple(_ratio(width, channels) for width in widths),
        num_res_blocks=c["layers_per_block"],
        attention_resolutions=tuple(size // 2**level for level in range(levels) if attention[level]),
        image_size=size,
        mid_attention=c["add_attention"],
        # a quirk of UNet2DModel: scale-shift networks lose this norm unless its groups are given
        mid_attention_norm=not scale_shift or c["attn_norm_num_groups"] is not None,
        head_channels=c["attention_head_dim"],
        num_classes=c["num_class_embeds"],
        null_class=False,
        resample="conv" if kind == "conv" else "resblock",
        downsample_padding=c["downsample_padding"],
        scale_shift_norm=scale_shift,
        norm_groups=groups,
        norm_eps=c["norm_eps"],
        flip_sin_to_cos=c["flip_sin_to_cos"],
        freq_shift=c["freq_shift"],
        dropout=c["dropout"],
        activation=diffusers.activation(c["act_fn"]),
        mid_scale=c["mid_block_scale_factor"],
        time_embedding=c["time_embedding_type"],
        center_input=c["center_input_sample"],
        initialization="pytorch",
        dtype=dtype,
    )


def describe(model: UNet, shapes: Shapes) -> dict[str, Any]:
    widths = model.level_channels()
    if widths[0] != model.channels:
        raise CheckpointError(
            f"channel_mults={model.channel_mults}: UNet2DModel's first level has multiplier 1;"
            " format='guided-diffusion' can hold this network"
        )
    if model.time_scale != 1:
        raise CheckpointError(
            f"time_scale={model.time_scale}: UNet2DModel is told the time as it is;"
            " format='guided-diffusion' can hold this network"
        )
    attention = attention_levels(model, shapes)
    kind = "conv" if model.resample == "conv" else "resnet"
    config: dict[str, Any] = {
        "_class_name": CLASS,
        "sample_size": reference_size(model, attention),
        "in_channels": shapes[("conv_in", "kernel")][2],
        "out_channels": model.out_channels,
        "freq_shift": model.freq_shift,
        "flip_sin_to_cos": model.flip_sin_to_cos,
        "down_block_types": [_block_name(DOWN_BLOCKS, here, kind) for here in attention],
        "up_block_types": [_block_name(UP_BLOCKS, here, kind) for here in reversed(attention)],
        "block_out_channels": list(widths),
        "layers_per_block": model.num_res_blocks,
        "downsample_padding": model.downsample_padding,
        "downsample_type": kind,
        "upsample_type": kind,
        "dropout": model.dropout,
        "act_fn": model.activation,
        "mid_block_scale_factor": model.mid_scale,
        "time_embedding_type": model.time_embedding,
        "center_input_sample": model.center_input,
        "attention_head_dim": _head_channels(model, attention),
        "norm_num_groups": model.norm_groups,
        "attn_norm_num_groups": model.norm_groups if model.mid_attention_norm else None,
        "norm_eps": model.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if model.scale_shift_norm else "default",
        "add_attention": model.mid_attention,
        "num_class_embeds": None if model.num_classes is None else model.num_classes + model.null_class,
    }
    return {**DEFAULTS, **config}


def check_plain(model: UNet, name: str) -> None:
    """Refuses what only UNet2DModel has."""
    for field, value in PLAIN.items():
        if getattr(model, field) != value:
            raise CheckpointError(
                f"{field}={getattr(model, field)!r}: {name} has {value!r}; format='diffusers' can hold this network"
            )


def inputs(model: UNet, config: Config) -> dict[str, Any]:
    size = 2 ** (len(model.channel_mults) - 1)
    sample = jnp.zeros((1, size, size, config.get("in_channels", DEFAULTS["in_channels"])))
    labels = None if model.num_classes is None else jnp.zeros((1,), jnp.int32)
    return {"sample": sample, "timestep": jnp.zeros((1,)), "class_labels": labels}


def attention_levels(model: UNetEncoder, shapes: Shapes) -> list[bool]:
    """Which levels have attention, read off the parameters: image_size may be None."""
    levels = range(len(model.channel_mults))
    return [(f"down_blocks_{level}", "attentions_0", "to_q", "kernel") in shapes for level in levels]


def reference_size(model: UNetEncoder, attention: list[bool]) -> int:
    """An image size for which attention_resolutions are at those levels."""
    if model.image_size is not None:
        return model.image_size
    if any(attention):
        return max(model.attention_resolutions) * 2 ** attention.index(True)
    return 2 ** (len(attention) - 1)


def _levels(config: Config) -> tuple[list[bool], str]:
    """Which levels have attention, and the one way in which all of them change the resolution."""
    down, up = config["down_block_types"], list(reversed(config["up_block_types"]))
    for field, known in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        for name in config[field]:
            if name not in known:
                raise diffusers.not_covered(CLASS, field, name, ", ".join(known))
    attention = [DOWN_BLOCKS[name][0] for name in down]
    if [UP_BLOCKS[name][0] for name in up] != attention:
        raise diffusers.not_covered(
            CLASS, "up_block_types", config["up_block_types"], "attention at the levels of down_block_types"
        )
    # the lowest level is not followed by a change of resolution on the way down, nor the highest on the way up
    kinds = {DOWN_BLOCKS[name][1] or config["downsample_type"] for name in down[:-1]}
    kinds |= {UP_BLOCKS[name][1] or config["upsample_type"] for name in up[1:]}
    if len(kinds) > 1:
        raise diffusers.not_covered(CLASS, "down_block_types", down, "blocks that all change the resolution in one way")
    return attention, kinds.pop() if kinds else "conv"


def _block_name(blocks: dict[str, tuple[bool, str | None]], attention: bool, kind: str) -> str:
    wanted = (attention, None if attention else kind)
    return next(name for name, properties in blocks.items() if properties == wanted)


def _head_channels(model: UNet, attention: list[bool]) -> int | None:
    if model.head_channels is not None or model.num_heads == 1:
        return model.head_channels
    widths = {width for width, here in zip(model.level_channels(), attention, strict=True) if here}
    if model.mid_attention:
        widths.add(model.level_channels()[-1])
    if len(widths) > 1:
        raise CheckpointError(
            f"num_heads={model.num_heads} with attention at {sorted(widths)} channels: UNet2DModel has one head"
            " width; format='guided-diffusion' can hold this network"
        )
    return widths.pop() // model.num_heads if widths else None


def _ratio(width: int, channels: int) -> float:
    return width // channels if width % channels == 0 else width / channels


FORMAT = Format(
    name="diffusers",
    covers="UNet2DModel (diffusers)",
    model_class=UNet,
    stem=diffusers.STEM,
    matches=lambda config: config.get("_class_name") == CLASS,
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=diffusers.tensors,
    rename=diffusers.rename,
    defaults=DEFAULTS,
)
