"""diffusers' SD3ControlNetModel: ControlNets for Stable Diffusion 3."""

from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.hub import diffusers, mmdit
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Shapes, Tensor, leaf_name, parameter
from diffusion_jax.models.mmdit_controlnet import MMDiTControlNet

CLASS = "SD3ControlNetModel"
# SD3ControlNetModel's own defaults
DEFAULTS: dict[str, Any] = mmdit.DEFAULTS | {
    "extra_conditioning_channels": 0,
    "pos_embed_type": "sincos",
    "use_pos_embed": True,
    "force_zeros_for_pooled_projection": True,
}
COVERED = {"qk_norm": (None, "rms_norm"), "pos_embed_type": ("sincos",), "use_pos_embed": (True,)}


def build(config: Config, dtype: DTypeLike) -> MMDiTControlNet:
    c = DEFAULTS | dict(config)
    diffusers.check_covered(CLASS, c, COVERED)
    if c["joint_attention_dim"] is None:
        raise diffusers.not_covered(CLASS, "joint_attention_dim", None, "a number")
    return MMDiTControlNet(
        dtype=dtype, zero_pooled=c["force_zeros_for_pooled_projection"], **mmdit.fields(CLASS, c)
    )  # fmt: skip


def describe(model: MMDiTControlNet, shapes: Shapes) -> dict[str, Any]:
    settings = mmdit.describe(model, shapes)
    return DEFAULTS | settings | {
        "_class_name": CLASS,
        "extra_conditioning_channels": shapes[("control_embedding", "kernel")][2] - settings["in_channels"],
        "force_zeros_for_pooled_projection": model.zero_pooled,
    }  # fmt: skip


def inputs(model: MMDiTControlNet, config: Config) -> dict[str, Any]:
    given = mmdit.inputs(model, config)
    extra = config.get("extra_conditioning_channels", DEFAULTS["extra_conditioning_channels"])
    *shape, channels = given["hidden_states"].shape
    return given | {"controlnet_cond": jnp.zeros((*shape, channels + extra))}


def tensors(model: MMDiTControlNet, shapes: Shapes, config: Config) -> list[Tensor]:
    control = {path: shape for path, shape in shapes.items() if path[0] == "control_embedding"}
    layout = mmdit.tensors(model, {path: shape for path, shape in shapes.items() if path not in control}, config)
    return [*layout, *(parameter(f"pos_embed_input.proj.{leaf_name(path)}", path, s) for path, s in control.items())]


FORMAT = Format(
    name="diffusers",
    covers=f"{CLASS} (diffusers)",
    model_class=MMDiTControlNet,
    stem=diffusers.STEM,
    matches=lambda config: config.get("_class_name") == CLASS,
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=tensors,
    complete=mmdit.completed(build),
    defaults=DEFAULTS,
)
