"""The U-Nets of improved-diffusion and guided-diffusion (ADM): their state dicts with their own names.

config.json holds the arguments of ``UNetModel`` in those repositories (``model_channels``, ``channel_mult``,
``attention_resolutions`` as downsampling factors, ...) and ``image_size``; the weights are the released .pt file
saved as .safetensors. improved-diffusion's network is the same with fewer options.

One tensor holds query, key and value. Its channels run head, then q/k/v, then width ("legacy" order, also
improved-diffusion's), or q/k/v, then head, then width (``use_new_attention_order``). The network has three
layers instead, so the order matters here only.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Path, Shapes, Tensor, fused_attention, leaf_name, parameter
from diffusion_jax.hub.unet2d import attention_levels, check_plain, reference_size
from diffusion_jax.models.unet import UNet, UNetEncoder

# module of a residual or attention block -> its name there
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ATTENTION = {"group_norm": "norm", "to_out_0": "proj_out"}
QKV = ("to_q", "to_k", "to_v")
# What all of these networks have.
FIXED: dict[str, Any] = {
    "norm_groups": 32,
    "norm_eps": 1e-5,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_attention": True,
    "mid_attention_norm": True,
}


def build(config: Config, dtype: DTypeLike) -> UNet:
    return UNet(
        out_channels=config["out_channels"],
        num_classes=config.get("num_classes"),
        null_class=False,
        dtype=dtype,
        **fields(config, "UNetModel"),
    )


def fields(config: Config, name: str) -> dict[str, Any]:
    """What U-Nets and classifiers have in common, from the arguments of the class of that name there."""
    if not config.get("conv_resample", True) or config.get("dims", 2) != 2:
        raise CheckpointError(f"{name} is covered with conv_resample=True and dims=2 only")
    heads_up = config.get("num_heads_upsample", -1)
    num_heads = config.get("num_heads", 1)
    if heads_up not in (-1, None, num_heads):
        raise CheckpointError(f"{name} with num_heads_upsample={heads_up} is not covered; it could be -1")
    size = config["image_size"]
    head_channels = config.get("num_head_channels", -1)
    return FIXED | {
        "channels": config["model_channels"],
        "channel_mults": tuple(config.get("channel_mult", (1, 2, 4, 8))),
        "num_res_blocks": config["num_res_blocks"],
        "attention_resolutions": tuple(size // factor for factor in config["attention_resolutions"]),
        "image_size": size,
        "num_heads": num_heads,
        "head_channels": None if head_channels == -1 else head_channels,
        "resample": "resblock" if config.get("resblock_updown", False) else "conv",
        "downsample_padding": 1,
        "scale_shift_norm": config.get("use_scale_shift_norm", False),
        "time_scale": config.get("time_scale", 1.0),
        "dropout": config.get("dropout", 0.0),
        "initialization": "pytorch",
    }


def describe(model: UNet, shapes: Shapes) -> dict[str, Any]:
    """The arguments of guided-diffusion's UNetModel; the legacy attention order is written."""
    check_plain(model, "guided-diffusion's UNetModel")
    return settings(model, shapes, "UNetModel") | {
        "out_channels": model.out_channels,
        "num_classes": None if model.num_classes is None else model.num_classes + model.null_class,
    }


def settings(model: UNetEncoder, shapes: Shapes, name: str) -> dict[str, Any]:
    """The inverse of `fields`."""
    fixed = FIXED | ({"downsample_padding": 1} if model.resample == "conv" else {})
    for field, value in fixed.items():
        if getattr(model, field) != value:
            raise CheckpointError(f"{field}={getattr(model, field)!r}: guided-diffusion's {name} has {value!r}")
    attention = attention_levels(model, shapes)
    # There it is a setting of the diffusion, which the network does not know.
    scaled = {} if model.time_scale == 1 else {"time_scale": model.time_scale}
    return scaled | {
        "image_size": reference_size(model, attention),
        "in_channels": shapes[("conv_in", "kernel")][2],
        "model_channels": model.channels,
        "num_res_blocks": model.num_res_blocks,
        "attention_resolutions": [2**level for level, here in enumerate(attention) if here],
        "dropout": model.dropout,
        "channel_mult": list(model.channel_mults),
        "num_heads": model.num_heads,
        "num_head_channels": -1 if model.head_channels is None else model.head_channels,
        "use_scale_shift_norm": model.scale_shift_norm,
        "resblock_updown": model.resample == "resblock",
        "use_new_attention_order": False,
    }


def inputs(model: UNet, config: Config) -> dict[str, Any]:
    size = 2 ** (len(model.channel_mults) - 1)
    labels = None if model.num_classes is None else jnp.zeros((1,), jnp.int32)
    sample = jnp.zeros((1, size, size, config["in_channels"]))
    return {"sample": sample, "timestep": jnp.zeros((1,)), "class_labels": labels}


def tensors(model: UNetEncoder, shapes: Shapes, config: Config) -> list[Tensor]:
    """Of every parameter but those of a classifier's pool."""
    modules = module_names(attention_levels(model, shapes), model.num_res_blocks, model.resample == "resblock")
    layout = []
    for path, shape in shapes.items():
        block, layer = path[:-2], path[-2]
        if layer in QKV[1:]:
            continue  # with to_q
        if layer == QKV[0]:
            heads = model.num_heads if model.head_channels is None else shape[-1] // model.head_channels
            paths = tuple((*block, part, path[-1]) for part in QKV)
            axis = 0 if config.get("use_new_attention_order", False) else 1
            layout.append(fused_attention(f"{modules[block]}.qkv.{leaf_name(path)}", paths, shape, heads, axis, 1))
        elif block in modules:
            name = f"{modules[block]}.{(RESNET | ATTENTION)[layer]}.{leaf_name(path)}"
            is_conv1d = layer == "to_out_0" and path[-1] == "kernel"
            layout.append(parameter(name, path, shape, extra_axes=int(is_conv1d)))
        else:
            layout.append(parameter(f"{modules[path[:-1]]}.{leaf_name(path)}", path, shape))
    return layout


def module_names(attention: Sequence[bool], num_res_blocks: int, resblock: bool) -> dict[Path, str]:
    """Blocks and single layers of the network -> their names in UNetModel, which counts blocks in order.

    Args:
      attention: whether each level has it.
      num_res_blocks: of a level on the way down.
      resblock: the resolution changes inside residual blocks.
    """
    names: dict[Path, str] = {
        ("conv_in",): "input_blocks.0.0",
        ("time_embedding", "linear_1"): "time_embed.0",
        ("time_embedding", "linear_2"): "time_embed.2",
        ("class_embedding",): "label_emb",
        ("mid_block", "resnets_0"): "middle_block.0",
        ("mid_block", "attentions_0"): "middle_block.1",
        ("mid_block", "resnets_1"): "middle_block.2",
        ("conv_norm_out",): "out.0",
        ("conv_out",): "out.2",
    }
    levels = len(attention)
    count = 1
    for level in range(levels):
        for i in range(num_res_blocks):
            names[(f"down_blocks_{level}", f"resnets_{i}")] = f"input_blocks.{count}.0"
            names[(f"down_blocks_{level}", f"attentions_{i}")] = f"input_blocks.{count}.1"
            count += 1
        if level < levels - 1:
            down = (f"down_blocks_{level}", "downsamplers_0")
            names[down if resblock else (*down, "conv")] = f"input_blocks.{count}.0" + ("" if resblock else ".op")
            count += 1
    count = 0
    for i in range(levels):
        for j in range(num_res_blocks + 1):
            names[(f"up_blocks_{i}", f"resnets_{j}")] = f"output_blocks.{count}.0"
            names[(f"up_blocks_{i}", f"attentions_{j}")] = f"output_blocks.{count}.1"
            count += 1
        # the change of resolution is appended to the level's last block
        position = 2 if attention[levels - 1 - i] else 1
        up = (f"up_blocks_{i}", "upsamplers_0")
        names[up if resblock else (*up, "conv")] = f"output_blocks.{count - 1}.{position}" + (
            "" if resblock else ".conv"
        )
    return names


FORMAT = Format(
    name="guided-diffusion",
    covers="UNetModel (improved-diffusion, guided-diffusion)",
    model_class=UNet,
    stem="model",
    matches=lambda config: "_class_name" not in config and "model_channels" in config,
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=tensors,
)
