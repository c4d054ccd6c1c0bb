"""The classifiers of guided-diffusion (ADM), ``EncoderUNetModel``: their state dicts with their own names.

config.json holds the arguments of that class, ``pool`` among them, by which it is told from a U-Net's; the rest is as
in :mod:`diffusion_jax.hub.openai_unet`. The pool's attention has its channels in the order q/k/v, head, width in every
file.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.hub import openai_unet
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.openai_unet import QKV
from diffusion_jax.hub.tensors import Shapes, Tensor, fused_attention, leaf_name, parameter
from diffusion_jax.models.unet_classifier import UNetClassifier

NAME = "EncoderUNetModel"
POSITIONS = ("pool", "positional_embedding")
# pool -> its layers and their places in the Sequential there; the attention's are below
HEADS = {
    "attention": {},
    "adaptive": {"out": "out.3"},
    "spatial": {"hidden": "out.0", "out": "out.2"},
    "spatial_v2": {"hidden": "out.0", "hidden_norm": "out.1", "out": "out.3"},
}


def build(config: Config, dtype: DTypeLike) -> UNetClassifier:
    return UNetClassifier(
        num_classes=config["out_channels"],
        pool=config["pool"],
        dtype=dtype,
        **openai_unet.fields(config, NAME),
    )


def describe(model: UNetClassifier, shapes: Shapes) -> dict[str, Any]:
    settings = openai_unet.settings(model, shapes, NAME)
    if POSITIONS in shapes:  # of a network that takes its size from its images
        side = math.isqrt(shapes[POSITIONS][0] - 1)
        settings["image_size"] = side * 2 ** (len(model.channel_mults) - 1)
    return settings | {"out_channels": model.num_classes, "pool": model.pool}


def inputs(model: UNetClassifier, config: Config) -> dict[str, Any]:
    size = config["image_size"]
    return {"sample": jnp.zeros((1, size, size, config["in_channels"])), "timestep": jnp.zeros((1,))}


def tensors(model: UNetClassifier, shapes: Shapes, config: Config) -> list[Tensor]:
    head = HEADS[model.pool]
    torso = {path: shape for path, shape in shapes.items() if path[0] not in ("pool", *head)}
    layout = openai_unet.tensors(model, torso, config)
    for path, shape in shapes.items():
        if path[0] in head:
            extra = 2 * (model.pool == "adaptive" and path[-1] == "kernel")  # a 1x1 convolution there
            layout.append(parameter(f"{head[path[0]]}.{leaf_name(path)}", path, shape, extra_axes=extra))
        elif path == POSITIONS:
            layout.append(
                Tensor(
                    "out.2.positional_embedding", shape[::-1], (path,), lambda there: (there.T,), lambda here: here[0].T
                )
            )
        elif path[:2] == ("pool", QKV[0]):
            paths = tuple(("pool", part, path[-1]) for part in QKV)
            heads = model.num_heads if model.head_channels is None else shape[-1] // model.head_channels
            layout.append(fused_attention(f"out.2.qkv_proj.{leaf_name(path)}", paths, shape, heads, 0, 1))
        elif path[:2] == ("pool", "to_out_0"):
            layout.append(parameter(f"out.2.c_proj.{leaf_name(path)}", path, shape, int(path[-1] == "kernel")))
    return layout


FORMAT = Format(
    name="guided-diffusion",
    covers="EncoderUNetModel (guided-diffusion's classifiers)",
    model_class=UNetClassifier,
    stem="model",
    matches=lambda config: "_class_name" not in config and {"model_channels", "pool"} <= config.keys(),
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=tensors,
)
