"""Diffusion transformers: diffusers' DiTTransformer2DModel, and the state dicts of the DiT and SiT repositories.

diffusers' layout repeats the embedding of time and class in every block. Where the copies are equal, as in every
converted checkpoint, the network has one; where they differ, it has all of them.

For the papers' own files, config.json holds the constructor's arguments (``input_size``, ``hidden_size``, ``depth``,
...) and for SiT ``"model_type": "SiT"``, beside the released .pt file saved as .safetensors. SiT's released code
computes the channels of a learnt variance and throws them away; they are not loaded.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Path, Shapes, Tensor, fused_attention, leaf_name, parameter
from diffusion_jax.models.dit import DiT

# DiTTransformer2DModel's own defaults, for files that do not state every setting
DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "upcast_attention": False,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
COVERED = ("attention_bias", "activation_fn", "norm_type", "norm_elementwise_affine")
# DiT's own defaults
ORIGINAL_DEFAULTS: dict[str, Any] = {
    "input_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 1152,
    "depth": 28,
    "num_heads": 16,
    "mlp_ratio": 4.0,
    "num_classes": 1000,
    "learn_sigma": True,
}
QKV = ("to_q", "to_k", "to_v")
# What diffusers fixes and the paper does not.
DIFFUSERS_FIELDS: dict[str, Any] = {"freq_shift": 1.0, "mlp_ratio": 4.0}
ORIGINAL_FIELDS: dict[str, Any] = {"freq_shift": 0.0, "mlp_norm_eps": 1e-6, "shared_conditioning": True, "dropout": 0.0}
EMBEDDERS = "transformer_blocks.{}.norm1.emb."
SHARED = "shared_conditioning"  # what `complete` adds to diffusers' config
CONDITIONING = {
    "time_1": ("timestep_embedder.linear_1", "t_embedder.mlp.0"),
    "time_2": ("timestep_embedder.linear_2", "t_embedder.mlp.2"),
    "class_embedding": ("class_embedder.embedding_table", "y_embedder.embedding_table"),
}
LAYERS = {
    "modulation": ("norm1.linear", "adaLN_modulation.1"),
    "to_q": ("attn1.to_q", "attn.qkv"),
    "to_k": ("attn1.to_k", ""),
    "to_v": ("attn1.to_v", ""),
    "to_out": ("attn1.to_out.0", "attn.proj"),
    "mlp_1": ("ff.net.0.proj", "mlp.fc1"),
    "mlp_2": ("ff.net.2", "mlp.fc2"),
}
OUTER = {
    "patch_embedding": ("pos_embed.proj", "x_embedder.proj"),
    "output_modulation": ("proj_out_1", "final_layer.adaLN_modulation.1"),
    "output": ("proj_out_2", "final_layer.linear"),
}


def build(config: Config, dtype: DTypeLike) -> DiT:
    c = DEFAULTS | dict(config)
    for field in COVERED:
        if c[field] != DEFAULTS[field]:
            raise CheckpointError(
                f"DiTTransformer2DModel with {field}={c[field]!r} is not covered; it could be {DEFAULTS[field]!r}"
            )
    return DiT(
        out_channels=c["in_channels"] if c["out_channels"] is None else c["out_channels"],
        patch_size=c["patch_size"],
        width=c["num_attention_heads"] * c["attention_head_dim"],
        depth=c["num_layers"],
        num_heads=c["num_attention_heads"],
        num_classes=c["num_embeds_ada_norm"],
        image_size=c["sample_size"],
        shared_conditioning=c[SHARED],
        mlp_norm_eps=c["norm_eps"],
        dropout=c["dropout"],
        dtype=dtype,
        **DIFFUSERS_FIELDS,
    )


def complete(config: Config, tensors: Mapping[str, np.ndarray]) -> Config:
    """Adds whether every block stores the same embedding of time and class."""
    first = EMBEDDERS.format(0)
    copies: dict[str, list[np.ndarray]] = {}
    for name, value in tensors.items():
        if found := re.match(EMBEDDERS.format(r"\d+").replace(".norm1", r"\.norm1"), name):
            copies.setdefault(first + name[found.end() :], []).append(value)
    shared = all(np.array_equal(copy, values[0]) for values in copies.values() for copy in values[1:])
    return {**config, SHARED: shared}


def describe(model: DiT, shapes: Shapes) -> dict[str, Any]:
    _require(model, DIFFUSERS_FIELDS, "DiTTransformer2DModel")
    if model.num_classes is None:
        raise CheckpointError("num_classes=None: DiTTransformer2DModel always has classes")
    return DEFAULTS | {
        "_class_name": "DiTTransformer2DModel",
        "num_attention_heads": model.num_heads,
        "attention_head_dim": model.width // model.num_heads,
        "in_channels": _in_channels(shapes),
        "out_channels": model.out_channels,
        "num_layers": model.depth,
        "dropout": model.dropout,
        "sample_size": _image_size(model),
        "patch_size": model.patch_size,
        "num_embeds_ada_norm": model.num_classes,
        "norm_eps": model.mlp_norm_eps,
    }


def inputs(model: DiT, config: Config) -> dict[str, Any]:
    labels = None if model.num_classes is None else jnp.zeros((1,), jnp.int32)
    images = jnp.zeros((1, model.patch_size, model.patch_size, config.get("in_channels", 4)))
    return {"hidden_states": images, "timestep": jnp.zeros((1,)), "class_labels": labels}


def tensors(model: DiT, shapes: Shapes, config: Config) -> list[Tensor]:
    layout = []
    for path, shape in shapes.items():
        module, layer, leaf = path[0], path[-2], leaf_name(path)
        if module in OUTER:
            layout.append(parameter(f"{OUTER[module][0]}.{leaf}", path, shape))
        elif module == "conditioning":
            for i in range(model.depth):
                layout.append(parameter(f"{EMBEDDERS.format(i)}{CONDITIONING[layer][0]}.{leaf}", path, shape))
        elif module.startswith("conditioning_"):
            prefix = EMBEDDERS.format(module.removeprefix("conditioning_"))
            layout.append(parameter(f"{prefix}{CONDITIONING[layer][0]}.{leaf}", path, shape))
        else:
            prefix = module.replace("blocks_", "transformer_blocks.")
            layout.append(parameter(f"{prefix}.{LAYERS[layer][0]}.{leaf}", path, shape))
    return layout


def build_original(config: Config, dtype: DTypeLike) -> DiT:
    c = ORIGINAL_DEFAULTS | dict(config)
    return DiT(
        out_channels=c["in_channels"] * (2 if c["learn_sigma"] and not _is_sit(config) else 1),
        patch_size=c["patch_size"],
        width=c["hidden_size"],
        depth=c["depth"],
        num_heads=c["num_heads"],
        mlp_ratio=c["mlp_ratio"],
        num_classes=c["num_classes"],
        image_size=c["input_size"],
        dtype=dtype,
        **ORIGINAL_FIELDS,
    )


def describe_original(model: DiT, shapes: Shapes) -> dict[str, Any]:
    _require(model, ORIGINAL_FIELDS, "the papers' DiT")
    channels = _in_channels(shapes)
    if model.num_classes is None or model.out_channels not in (channels, 2 * channels):
        raise CheckpointError(
            f"num_classes={model.num_classes}, out_channels={model.out_channels}: the papers' DiT has classes, and"
            f" {channels} or {2 * channels} channels out for {channels} in"
        )
    return {
        "input_size": _image_size(model),
        "patch_size": model.patch_size,
        "in_channels": channels,
        "hidden_size": model.width,
        "depth": model.depth,
        "num_heads": model.num_heads,
        "mlp_ratio": model.mlp_ratio,
        "num_classes": model.num_classes,
        "learn_sigma": model.out_channels == 2 * channels,
    }


def tensors_original(model: DiT, shapes: Shapes, config: Config) -> list[Tensor]:
    layout = []
    for path, shape in shapes.items():
        module, layer, leaf = path[0], path[-2], leaf_name(path)
        if module == "output" and _is_sit(config) and config.get("learn_sigma", True):
            layout.append(_first_half(f"{OUTER[module][1]}.{leaf}", path, shape, model.out_channels))
        elif module in OUTER:
            layout.append(parameter(f"{OUTER[module][1]}.{leaf}", path, shape))
        elif module == "conditioning":
            layout.append(parameter(f"{CONDITIONING[layer][1]}.{leaf}", path, shape))
        elif layer == QKV[0]:
            paths = tuple((module, part, path[-1]) for part in QKV)
            name = f"{module.replace('_', '.')}.{LAYERS[layer][1]}.{leaf}"
            layout.append(fused_attention(name, paths, shape, model.num_heads, 0, 0))
        elif layer not in QKV:
            layout.append(parameter(f"{module.replace('_', '.')}.{LAYERS[layer][1]}.{leaf}", path, shape))
    return layout


def _first_half(name: str, path: Path, shape: tuple[int, ...], channels: int) -> Tensor:
    """The output layer [patch^2 * 2 channels, width], or its bias, less the second half of each pixel's channels."""
    inner = shape[:-1]

    def unpack(tensor: np.ndarray) -> Sequence[np.ndarray]:
        kept = tensor.reshape(-1, 2, channels, *inner)[:, 0]
        return (kept.reshape(shape[-1], *inner).T,)

    def pack(values: Sequence[np.ndarray]) -> np.ndarray:
        raise CheckpointError("SiT's unused half is not kept; save with learn_sigma false")

    return Tensor(name, (2 * shape[-1], *inner), (path,), unpack, pack)


def _is_sit(config: Config) -> bool:
    return config.get("model_type") == "SiT"


def _in_channels(shapes: Shapes) -> int:
    return shapes[("patch_embedding", "kernel")][2]


def _image_size(model: DiT) -> int:
    if model.image_size is None:
        raise CheckpointError("image_size=None: the layout needs the size that positions count from")
    return model.image_size


def _require(model: DiT, fields: Mapping[str, Any], what: str) -> None:
    for field, value in fields.items():
        if getattr(model, field) != value:
            raise CheckpointError(f"{field}={getattr(model, field)!r}: {what} has {value!r}")


def _is_diffusers(config: Config) -> bool:
    # before diffusers 0.28 the class was Transformer2DModel, with the same settings and tensors
    name = config.get("_class_name")
    old = name == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero"
    return name == "DiTTransformer2DModel" or old


FORMAT = Format(
    name="diffusers",
    covers="DiTTransformer2DModel (diffusers)",
    model_class=DiT,
    stem="diffusion_pytorch_model",
    matches=_is_diffusers,
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=tensors,
    # a constant that some versions store
    ignores=lambda name: name == "pos_embed.pos_embed",
    complete=complete,
    defaults=DEFAULTS,
)
ORIGINAL_FORMAT = Format(
    name="original",
    covers="DiT and SiT (their repositories)",
    model_class=DiT,
    stem="model",
    matches=lambda config: "_class_name" not in config and {"hidden_size", "depth", "patch_size"} <= config.keys(),
    build=build_original,
    describe=describe_original,
    inputs=inputs,
    tensors=tensors_original,
    ignores=lambda name: name == "pos_embed",
    defaults=ORIGINAL_DEFAULTS,
)
