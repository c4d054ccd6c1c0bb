"""The U-Net of Ho et al. 2020 as its PyTorch port names it (github.com/pesser/pytorch_diffusion, ermongroup/ddim).

config.json holds the arguments of ``Model`` there (``ch``, ``ch_mult``, ``attn_resolutions``, ...). The autoencoders of
Stable Diffusion descend from the same code, and name their blocks alike.
"""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Path, Shapes, Tensor, leaf_name, parameter
from diffusion_jax.hub.unet2d import attention_levels, check_plain, reference_size
from diffusion_jax.models.unet import UNet

MODULES = {"conv_norm_out": "norm_out", "linear_1": "temb.dense.0", "linear_2": "temb.dense.1"}
RESNET = {"conv_shortcut": "nin_shortcut", "time_emb_proj": "temb_proj"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out_0": "proj_out"}
# What the paper fixes.
FIELDS: dict[str, Any] = {
    "mid_attention": True,
    "mid_attention_norm": True,
    "num_heads": 1,
    "head_channels": None,
    "num_classes": None,
    "resample": "conv",
    "downsample_padding": 0,
    "scale_shift_norm": False,
    "norm_groups": 32,
    "norm_eps": 1e-6,
    "flip_sin_to_cos": False,
    "freq_shift": 1.0,
    "time_scale": 1.0,
}


def build(config: Config, dtype: DTypeLike) -> UNet:
    if not config.get("resamp_with_conv", True):
        raise CheckpointError("Model with resamp_with_conv=False is not covered; it could be True")
    fields = {name: value for name, value in FIELDS.items() if name != "num_heads"}
    return UNet(
        out_channels=config["out_ch"],
        channels=config["ch"],
        channel_mults=tuple(config["ch_mult"]),
        num_res_blocks=config["num_res_blocks"],
        attention_resolutions=tuple(config["attn_resolutions"]),
        image_size=config["resolution"],
        dropout=config.get("dropout", 0.0),
        dtype=dtype,
        **fields,
    )


def describe(model: UNet, shapes: Shapes) -> dict[str, Any]:
    check_plain(model, "the network of Ho et al.")
    for field, value in FIELDS.items():
        if getattr(model, field) != value:
            raise CheckpointError(f"{field}={getattr(model, field)!r}: the network of Ho et al. has {value!r}")
    return {
        "ch": model.channels,
        "out_ch": model.out_channels,
        "ch_mult": list(model.channel_mults),
        "num_res_blocks": model.num_res_blocks,
        "attn_resolutions": list(model.attention_resolutions),
        "dropout": model.dropout,
        "in_channels": shapes[("conv_in", "kernel")][2],
        "resolution": reference_size(model, attention_levels(model, shapes)),
        "resamp_with_conv": True,
    }


def inputs(model: UNet, config: Config) -> dict[str, Any]:
    size = 2 ** (len(model.channel_mults) - 1)
    return {"sample": jnp.zeros((1, size, size, config["in_channels"])), "timestep": jnp.zeros((1,))}


def tensors(model: UNet, shapes: Shapes, config: Config) -> list[Tensor]:
    levels = len(model.channel_mults)
    return [convolutional(module_name(path[:-1], levels), path, shape) for path, shape in shapes.items()]


def convolutional(module: str, path: Path, shape: tuple[int, ...]) -> Tensor:
    """A parameter of that module; attentions are made of 1x1 convolutions there."""
    is_conv = path[-2] in ATTENTION and path[-1] == "kernel"
    return parameter(f"{module}.{leaf_name(path)}", path, shape, extra_axes=2 * is_conv)


def module_name(path: Path, levels: int) -> str:
    """up_blocks_0/resnets_1/conv_shortcut -> up.3.block.1.nin_shortcut, for four levels"""
    *above, layer = path
    if len(above) < 2:
        return MODULES.get(layer, layer)
    level, block = above
    kind, _, index = block.rpartition("_")
    inside = ATTENTION[layer] if kind == "attentions" else RESNET.get(layer, layer)
    if level == "mid_block":
        return f"mid.attn_1.{inside}" if kind == "attentions" else f"mid.block_{int(index) + 1}.{inside}"
    way, _, number = level.partition("_blocks_")
    number = levels - 1 - int(number) if way == "up" else int(number)
    place = {
        "resnets": f"block.{index}", "attentions": f"attn.{index}", "downsamplers": "downsample",
        "upsamplers": "upsample",
    }[kind]  # fmt: skip
    return f"{way}.{number}.{place}.{inside}"


FORMAT = Format(
    name="ddpm",
    covers="Model (PyTorch port of DDPM)",
    model_class=UNet,
    stem="model",
    matches=lambda config: {"ch", "ch_mult", "attn_resolutions"} <= config.keys(),
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=tensors,
)
