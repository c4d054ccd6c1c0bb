"""The networks of the EDM repository (Karras et al. 2022): state dicts of its SongUNet and DhariwalUNet.

config.json holds the arguments that the pickled network was made with: ``model_type``, ``img_resolution``,
``model_channels``, ... What is loaded is the raw network F; the preconditioning around it is a pure function
(:mod:`diffusion_jax.diffusion.preconditioning`).

Blocks are named by their resolution there and by their level here. One tensor holds query, key and value, its channels
in the order head, width, q/k/v.
"""

import re
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Path, Shapes, Tensor, fused_attention, leaf_name, parameter
from diffusion_jax.models.edm2_unet import EDM2UNet
from diffusion_jax.models.edm_unet import EDMUNet

# the class around a network whose output has a second half, for the variance; the other three classes leave no trace
LEARNED_VARIANCE = "iDDPMPrecond"
MODEL_TYPES = {"SongUNet": "song", "DhariwalUNet": "adm"}
# The arguments of each class and their defaults there, less those that every file states.
COMMON = {"label_dim": 0, "augment_dim": 0, "channel_mult_emb": 4, "dropout": 0.10, "label_dropout": 0}
DEFAULTS: dict[str, dict[str, Any]] = {
    "SongUNet": COMMON
    | {
        "model_channels": 128,
        "channel_mult": [1, 2, 2, 2],
        "num_blocks": 4,
        "attn_resolutions": [16],
        "embedding_type": "positional",
        "channel_mult_noise": 1,
        "encoder_type": "standard",
        "decoder_type": "standard",
        "resample_filter": [1, 1],
    },
    "DhariwalUNet": COMMON
    | {"model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3, "attn_resolutions": [32, 16, 8]},
}
# Fields of the network that are arguments of SongUNet, and what they are in DhariwalUNet.
SONG_FIELDS = {
    "embedding": "embedding_type",
    "noise_channel_mult": "channel_mult_noise",
    "encoder": "encoder_type",
    "decoder": "decoder_type",
    "resample_filter": "resample_filter",
}
ADM_ONLY = {
    "embedding": "positional",
    "noise_channel_mult": 1,
    "encoder": "standard",
    "decoder": "standard",
    "resample_filter": (1, 1),
}
LEVEL = re.compile(r"^(encoder|decoder)_(\d+)_(.*)$")
QKV = ("to_q", "to_k", "to_v")


def build(config: Config, dtype: DTypeLike) -> EDMUNet:
    c = DEFAULTS[config["model_type"]] | dict(config)
    if c["channel_mult_emb"] != 4:
        raise CheckpointError(f"channel_mult_emb={c['channel_mult_emb']!r} is not covered; it could be 4")
    sizes = [c["img_resolution"] >> level for level in range(len(c["channel_mult"]))]
    return EDMUNet(
        out_channels=c["img_channels"] * (2 if c.get("preconditioning") == LEARNED_VARIANCE else 1),
        family=MODEL_TYPES[c["model_type"]],
        channels=c["model_channels"],
        channel_mults=tuple(c["channel_mult"]),
        num_res_blocks=c["num_blocks"],
        # those that no level has are allowed there
        attention_resolutions=tuple(size for size in sizes if size in c["attn_resolutions"]),
        image_size=c["img_resolution"],
        num_classes=c["label_dim"] or None,
        augment_dim=c["augment_dim"],
        dropout=c["dropout"],
        dtype=dtype,
        **_song_fields(c),
    )


def describe(model: EDMUNet, shapes: Shapes) -> dict[str, Any]:
    model_type = next(name for name, family in MODEL_TYPES.items() if family == model.family)
    channels = shapes[("encoder_0_conv", "kernel")][2]
    if model.out_channels not in (channels, 2 * channels):
        raise CheckpointError(
            f"out_channels={model.out_channels}: EDM's networks give {channels} or {2 * channels} for {channels}"
        )
    config: dict[str, Any] = {"preconditioning": LEARNED_VARIANCE} if model.out_channels > channels else {}
    config |= {
        "model_type": model_type,
        "img_resolution": image_size(model, shapes, "attention", "proj"),
        "img_channels": channels,
        "label_dim": model.num_classes or 0,
        "augment_dim": model.augment_dim,
        "model_channels": model.channels,
        "channel_mult": list(model.channel_mults),
        "num_blocks": model.num_res_blocks,
        "attn_resolutions": list(model.attention_resolutions),
        "dropout": model.dropout,
    }
    if model_type == "SongUNet":
        names = {there: getattr(model, here) for here, there in SONG_FIELDS.items()}
        return config | names | {"resample_filter": list(model.resample_filter)}
    for field, value in ADM_ONLY.items():
        if getattr(model, field) != value:
            raise CheckpointError(f"{field}={getattr(model, field)!r}: DhariwalUNet has {value!r}")
    return config


def inputs(model: EDMUNet | EDM2UNet, config: Config) -> dict[str, Any]:
    size = model.image_size or 2 ** (len(model.channel_mults) - 1)
    labels = None if model.num_classes is None else jnp.zeros((1,), jnp.int32)
    sample = jnp.zeros((1, size, size, config["img_channels"]))
    return {"sample": sample, "timestep": jnp.zeros((1,)), "class_labels": labels}


def tensors(model: EDMUNet, shapes: Shapes, config: Config) -> list[Tensor]:
    layout = []
    for path, shape in shapes.items():
        layer, leaf = path[-2], path[-1]
        prefix = _module_name(path[:-1], config)
        if layer in QKV[1:]:
            continue  # with to_q
        if leaf == "frequencies":
            layout.append(parameter(f"{prefix}.freqs", path, shape))
        elif layer == QKV[0]:
            heads = 1 if model.family == "song" else shape[-1] // 64
            paths = tuple((*path[:-2], part, leaf) for part in QKV)
            layout.append(fused_attention(f"{prefix}.{leaf_name(path)}", paths, shape, heads, 2, 2))
        else:
            is_conv = layer == "proj" and leaf == "kernel"
            layout.append(parameter(f"{prefix}.{leaf_name(path)}", path, shape, extra_axes=2 * is_conv))
    return layout


def ignores(name: str) -> bool:
    """The resampling filters, which are settings."""
    return name.endswith(".resample_filter")


def _song_fields(config: Config) -> dict[str, Any]:
    if config["model_type"] != "SongUNet":
        return ADM_ONLY
    fields = {here: config[there] for here, there in SONG_FIELDS.items()}
    return fields | {"resample_filter": tuple(fields["resample_filter"])}


def _module_name(path: Path, config: Config) -> str:
    """decoder_1_block0/attention/to_q -> model.dec.16x16_block0.qkv, for images of 32 pixels"""
    parts = [part for part in path if part != "attention"]
    if parts[-1] == QKV[0]:
        parts[-1] = "qkv"
    parts[0] = level_name(parts[0], config) or parts[0]
    if config["model_type"] == "DhariwalUNet":
        parts[0] = re.sub(r"^dec\..*_aux_(norm|conv)$", r"out_\1", parts[0])
    return ".".join(("model", *parts))


def level_name(module: str, config: Config) -> str | None:
    """decoder_1_block0 -> dec.16x16_block0, for images of 32 pixels; None for modules outside of the levels."""
    if found := LEVEL.match(module):
        way, level, rest = found.groups()
        size = config["img_resolution"] >> int(level)
        return f"{way[:3]}.{size}x{size}_{rest}"
    return None


def image_size(model: EDMUNet | EDM2UNet, shapes: Shapes, *attention: str) -> int:
    """The image size that the names of the file count from; ``attention``: where a block has its projection."""
    if model.image_size is not None:
        return model.image_size
    for level in range(len(model.channel_mults)):
        if (f"encoder_{level}_block0", *attention, "kernel") in shapes:
            return max(model.attention_resolutions) * 2**level
    return 2 ** (len(model.channel_mults) - 1)


FORMAT = Format(
    name="edm",
    covers="SongUNet and DhariwalUNet (EDM)",
    model_class=EDMUNet,
    stem="model",
    matches=lambda config: config.get("model_type") in MODEL_TYPES and "img_resolution" in config,
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=tensors,
    ignores=ignores,
)
