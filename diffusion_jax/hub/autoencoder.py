"""diffusers' AutoencoderKL: the autoencoders of Stable Diffusion, SDXL, SD 3 and Flux."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.hub import diffusers
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Shapes
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.vq import VQModel

CLASS = "AutoencoderKL"
DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
# AutoencoderKL's own defaults, for the older files that do not state every setting
DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": [DOWN],
    "up_block_types": [UP],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
COVERED = {"act_fn": ("silu",)}
MOMENTS = ("latents_mean", "latents_std")
# settings that are fields of the network under another name
FIELDS = {
    "out_channels": "out_channels",
    "latent_channels": "latent_channels",
    "layers_per_block": "num_res_blocks",
    "mid_block_add_attention": "mid_attention",
    "use_quant_conv": "use_quant_conv",
    "use_post_quant_conv": "use_post_quant_conv",
    "norm_num_groups": "norm_groups",
    "scaling_factor": "scaling_factor",
    "shift_factor": "shift_factor",
    "force_upcast": "force_upcast",
}


def build(config: Config, dtype: DTypeLike) -> AutoencoderKL:
    c = DEFAULTS | dict(config)
    diffusers.check_covered(CLASS, c, COVERED)
    check_blocks(CLASS, c)
    return AutoencoderKL(
        widths=tuple(c["block_out_channels"]),
        sample_size=side(c["sample_size"]),
        dtype=dtype,
        **{name: None if c[name] is None else tuple(c[name]) for name in MOMENTS},
        **{here: c[there] for there, here in FIELDS.items()},
    )


def check_blocks(class_name: str, c: Config) -> None:
    """Refuses block types other than the plain ones of autoencoders."""
    for field, block in (("down_block_types", DOWN), ("up_block_types", UP)):
        if list(c[field]) != [block] * len(c["block_out_channels"]):
            raise diffusers.not_covered(class_name, field, c[field], f"{block} for each of block_out_channels")


def side(size: Any) -> Any:
    """The height of images whose size is stated once or as [height, width]."""
    return size[0] if isinstance(size, list) else size


def levels(model: AutoencoderKL | VQModel, shapes: Shapes) -> dict[str, Any]:
    """The settings of the resolutions, which all these autoencoders state alike."""
    count = len(model.widths)
    return {
        "in_channels": shapes[("encoder", "conv_in", "kernel")][2],
        "block_out_channels": list(model.widths),
        "down_block_types": [DOWN] * count,
        "up_block_types": [UP] * count,
        "sample_size": model.sample_size,
    }


def describe(model: AutoencoderKL, shapes: Shapes) -> dict[str, Any]:
    return DEFAULTS | {
        "_class_name": CLASS,
        **levels(model, shapes),
        **{name: None if getattr(model, name) is None else list(getattr(model, name)) for name in MOMENTS},
        **{there: getattr(model, here) for there, here in FIELDS.items()},
    }


def inputs(model: AutoencoderKL | VQModel, config: Config) -> dict[str, Any]:
    channels = config.get("in_channels", DEFAULTS["in_channels"])
    return {"sample": jnp.zeros((1, model.factor, model.factor, channels))}


FORMAT = Format(
    name="diffusers",
    covers="AutoencoderKL (diffusers)",
    model_class=AutoencoderKL,
    stem=diffusers.STEM,
    matches=lambda config: config.get("_class_name") == CLASS,
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=diffusers.tensors,
    rename=diffusers.rename,
    defaults=DEFAULTS,
)
