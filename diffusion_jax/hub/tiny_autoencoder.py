"""diffusers' AutoencoderTiny (TAESD), whose layers are numbered through in the file."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.hub import diffusers
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Path, Shapes, Tensor, leaf_name, parameter
from diffusion_jax.models.tiny_autoencoder import AutoencoderTiny

CLASS = "AutoencoderTiny"
# AutoencoderTiny's own defaults
DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "encoder_block_out_channels": [64, 64, 64, 64],
    "decoder_block_out_channels": [64, 64, 64, 64],
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "latent_channels": 4,
    "upsampling_scaling_factor": 2,
    "num_encoder_blocks": [1, 3, 3, 3],
    "num_decoder_blocks": [3, 3, 3, 1],
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "force_upcast": False,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
COVERED = {"act_fn": ("relu",), "upsample_fn": ("nearest",), "upsampling_scaling_factor": (2,)}
STAGES = {
    "encoder_block_out_channels": "encoder_widths",
    "decoder_block_out_channels": "decoder_widths",
    "num_encoder_blocks": "encoder_blocks",
    "num_decoder_blocks": "decoder_blocks",
}
NUMBERS = (
    "out_channels", "latent_channels", "latent_magnitude", "latent_shift", "scaling_factor", "shift_factor"
)  # fmt: skip


def build(config: Config, dtype: DTypeLike) -> AutoencoderTiny:
    c = DEFAULTS | dict(config)
    diffusers.check_covered(CLASS, c, COVERED)
    stages = {here: tuple(c[there]) for there, here in STAGES.items()}
    return AutoencoderTiny(dtype=dtype, **stages, **{name: c[name] for name in NUMBERS})


def describe(model: AutoencoderTiny, shapes: Shapes) -> dict[str, Any]:
    stages = {there: list(getattr(model, here)) for there, here in STAGES.items()}
    return DEFAULTS | {
        "_class_name": CLASS,
        "in_channels": shapes[("encoder", "conv_0", "kernel")][2],
        "block_out_channels": list(model.decoder_widths),
        **stages,
        **{name: getattr(model, name) for name in NUMBERS},
    }


def inputs(model: AutoencoderTiny, config: Config) -> dict[str, Any]:
    channels = config.get("in_channels", DEFAULTS["in_channels"])
    return {"sample": jnp.zeros((1, model.factor, model.factor, channels))}


def tensors(model: AutoencoderTiny, shapes: Shapes, config: Config) -> list[Tensor]:
    places = {"encoder": _encoder_places(model.encoder_blocks), "decoder": _decoder_places(model.decoder_blocks)}
    layout = []
    for path, shape in shapes.items():
        name = f"{path[0]}.layers.{places[path[0]][path[1]]}{_inside(path[2:-1])}.{leaf_name(path)}"
        layout.append(parameter(name, path, shape))
    return layout


def _encoder_places(blocks: Sequence[int]) -> dict[str, int]:
    names = []
    for stage, count in enumerate(blocks):
        names += [f"conv_{stage}", *(f"block_{stage}_{i}" for i in range(count))]
    return {name: place for place, name in enumerate([*names, "conv_out"])}


def _decoder_places(blocks: Sequence[int]) -> dict[str, int]:
    names = ["conv_in", "relu"]
    for stage, count in enumerate(blocks):
        last = stage == len(blocks) - 1
        names += [f"block_{stage}_{i}" for i in range(count)]
        names += ["conv_out"] if last else [f"upsample_{stage}", f"conv_{stage}"]
    return {name: place for place, name in enumerate(names)}


def _inside(path: Path) -> str:
    """The convolutions of a block stand there between its ReLUs: conv_1 -> .conv.2"""
    return f".conv.{2 * int(path[0].removeprefix('conv_'))}" if path else ""


FORMAT = Format(
    name="diffusers",
    covers="AutoencoderTiny (diffusers)",
    model_class=AutoencoderTiny,
    stem=diffusers.STEM,
    matches=lambda config: config.get("_class_name") == CLASS,
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=tensors,
    defaults=DEFAULTS,
)
