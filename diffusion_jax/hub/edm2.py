"""The networks of the EDM2 repository (Karras et al. 2024): state dicts of its preconditioned U-Net.

config.json holds ``"class_name": "training.networks_edm2.Precond"`` and the arguments that the pickled network was made
with (``img_resolution``, ``model_channels``, ...), as the repository's training options do. Loaded are the raw network
and its estimate of the log variance; the preconditioning is :func:`diffusion_jax.diffusion.preconditioning.edm`.

Blocks are named by their resolution there and by their level here. One tensor holds query, key and value, its channels
in the order head, width, q/k/v.
"""

from collections.abc import Sequence
from typing import Any

from jax.typing import DTypeLike

from diffusion_jax.hub.edm import QKV, image_size, inputs, level_name
from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.format import Config, Format
from diffusion_jax.hub.tensors import Shapes, Tensor, fused_attention, parameter
from diffusion_jax.models.edm2_unet import EDM2UNet

CLASS_NAME = "training.networks_edm2.Precond"
# Arguments there -> fields here, with the defaults of both.
FIELDS: dict[str, tuple[str, Any]] = {
    "model_channels": ("channels", 192),
    "channel_mult": ("channel_mults", (1, 2, 3, 4)),
    "num_blocks": ("num_res_blocks", 3),
    "attn_resolutions": ("attention_resolutions", (16, 8)),
    "channels_per_head": ("head_channels", 64),
    "label_balance": ("label_balance", 0.5),
    "concat_balance": ("concat_balance", 0.5),
    "res_balance": ("residual_balance", 0.3),
    "attn_balance": ("attention_balance", 0.3),
    "clip_act": ("clip_activations", 256),
    "resample_filter": ("resample_filter", (1, 1)),
    "logvar_channels": ("uncertainty_channels", 128),
    "dropout": ("dropout", 0.0),
}
MODULES = {
    "fourier": "unet.emb_fourier",
    "embed_noise": "unet.emb_noise",
    "embed_label": "unet.emb_label",
    "out_conv": "unet.out_conv",
}
LEAVES = {"kernel": "weight", "frequencies": "freqs", "phases": "phases", "emb_gain": "emb_gain"}


def build(config: Config, dtype: DTypeLike) -> EDM2UNet:
    for field in ("channel_mult_noise", "channel_mult_emb"):
        if config.get(field) is not None:
            raise CheckpointError(f"{field}={config[field]!r} is not covered; it could be null")
    fields: dict[str, Any] = {here: config.get(there, default) for there, (here, default) in FIELDS.items()}
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    sizes = [config["img_resolution"] >> level for level in range(len(fields["channel_mults"]))]
    # those that no level has are allowed there
    fields["attention_resolutions"] = tuple(size for size in sizes if size in fields["attention_resolutions"])
    return EDM2UNet(
        out_channels=config["img_channels"],
        image_size=config["img_resolution"],
        num_classes=config["label_dim"] or None,
        dtype=dtype,
        **fields,
    )


def describe(model: EDM2UNet, shapes: Shapes) -> dict[str, Any]:
    channels = shapes[("encoder_0_conv", "kernel")][2] - 1  # less the one of ones
    if channels != model.out_channels:
        raise CheckpointError(
            f"out_channels={model.out_channels}: EDM2's networks give as many as they take, {channels}"
        )
    settings = {there: getattr(model, here) for there, (here, _) in FIELDS.items()}
    return {
        "class_name": CLASS_NAME,
        "img_resolution": image_size(model, shapes, "attn_proj"),
        "img_channels": channels,
        "label_dim": model.num_classes or 0,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()},
    }


def tensors(model: EDM2UNet, shapes: Shapes, config: Config) -> list[Tensor]:
    layout = []
    for path, shape in shapes.items():
        *modules, leaf = path
        layer = modules[-1] if modules else ""
        if layer in QKV[1:]:
            continue  # with to_q
        if layer == QKV[0]:
            paths = tuple((*modules[:-1], part, leaf) for part in QKV)
            name = f"{_module_name(modules[:-1], config)}.attn_qkv.weight"
            layout.append(fused_attention(name, paths, shape, shape[-1] // model.head_channels, 2, 2))
        elif not modules:  # the only parameter that belongs to no module
            layout.append(parameter("unet.out_gain", path, shape))
        else:
            is_conv = layer in ("conv_skip", "attn_proj")
            name = f"{_module_name(modules, config)}.{LEAVES[leaf]}"
            layout.append(parameter(name, path, shape, extra_axes=2 * is_conv))
    return layout


def _module_name(path: Sequence[str], config: Config) -> str:
    """decoder_1_block0/conv_res0 -> unet.dec.32x32_block0.conv_res0, for images of 64 pixels"""
    if path[0] == "uncertainty":
        return f"logvar_{path[1]}"
    first = level_name(path[0], config)
    return ".".join((MODULES[path[0]] if first is None else f"unet.{first}", *path[1:]))


FORMAT = Format(
    name="edm2",
    covers="Precond (EDM2)",
    model_class=EDM2UNet,
    stem="model",
    matches=lambda config: config.get("class_name") == CLASS_NAME,
    build=build,
    describe=describe,
    inputs=inputs,
    tensors=tensors,
)
