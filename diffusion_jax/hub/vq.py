"""diffusers' VQModel: the quantised autoencoders of latent diffusion."""

from typing import Any

from jax.typing import DTypeLike

from diffusion_jax.hub import autoencoder, diffusers
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Shapes
from diffusion_jax.models.vq import VQModel

CLASS = "VQModel"
# VQModel's own defaults
DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": [autoencoder.DOWN],
    "up_block_types": [autoencoder.UP],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 3,
    "sample_size": 32,
    "num_vq_embeddings": 256,
    "norm_num_groups": 32,
    "vq_embed_dim": None,
    "scaling_factor": 0.18215,
    "norm_type": "group",
    "mid_block_add_attention": True,
    "lookup_from_codebook": False,
    "force_upcast": False,
}
COVERED = {"act_fn": ("silu",), "norm_type": ("group",), "lookup_from_codebook": (False,)}
FIELDS = {
    "out_channels": "out_channels",
    "latent_channels": "latent_channels",
    "layers_per_block": "num_res_blocks",
    "mid_block_add_attention": "mid_attention",
    "num_vq_embeddings": "num_codes",
    "norm_num_groups": "norm_groups",
    "scaling_factor": "scaling_factor",
    "force_upcast": "force_upcast",
}


def build(config: Config, dtype: DTypeLike) -> VQModel:
    c = DEFAULTS | dict(config)
    diffusers.check_covered(CLASS, c, COVERED)
    autoencoder.check_blocks(CLASS, c)
    return VQModel(
        widths=tuple(c["block_out_channels"]),
        code_channels=c["latent_channels"] if c["vq_embed_dim"] is None else c["vq_embed_dim"],
        sample_size=autoencoder.side(c["sample_size"]),
        dtype=dtype,
        **{here: c[there] for there, here in FIELDS.items()},
    )


def describe(model: VQModel, shapes: Shapes) -> dict[str, Any]:
    return DEFAULTS | {
        "_class_name": CLASS,
        **autoencoder.levels(model, shapes),
        "vq_embed_dim": model.code_channels,
        **{there: getattr(model, here) for there, here in FIELDS.items()},
    }


FORMAT = Format(
    name="diffusers",
    covers="VQModel (diffusers)",
    model_class=VQModel,
    stem=diffusers.STEM,
    matches=lambda config: config.get("_class_name") == CLASS,
    build=build,
    describe=describe,
    inputs=autoencoder.inputs,
    tensors=diffusers.tensors,
    rename=diffusers.rename,
    defaults=DEFAULTS,
)
