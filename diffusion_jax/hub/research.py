"""Weights as the papers' authors released them: which network a file holds, and its settings from names and shapes.

Pickles of EDM and EDM2 keep the arguments of their networks. The state dicts of DDPM's port, improved-diffusion,
guided-diffusion, DiT and SiT keep nothing; what neither a name nor a shape tells (heads, the order of queries, keys and
values) is known for the released files by their names, and has to be stated for others.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_jax.hub.ddpm import ATTENTION
from diffusion_jax.hub.edm import COMMON, DEFAULTS, LEARNED_VARIANCE
from diffusion_jax.hub.edm2 import CLASS_NAME
from diffusion_jax.hub.files import CheckpointError

FileShapes = Mapping[str, tuple[int, ...]]
Settings = dict[str, Any]
# guided-diffusion's and improved-diffusion's released files, from the flags of their READMEs
ADM_HEADS: dict[str, Settings] = {
    r"64x64_diffusion": {"num_head_channels": 64, "use_new_attention_order": True},
    r"128x128_diffusion": {"num_heads": 4},
    r"(256x256|512x512)_diffusion(_uncond)?": {"num_head_channels": 64},
    r"lsun_(bedroom|cat|horse|horse_nodropout)": {"num_head_channels": 64},
    r"64_256_upsampler": {"num_heads": 4},
    r"128_512_upsampler": {"num_head_channels": 64},
    r"(cifar10|imagenet64)_(un)?cond_.*": {"num_heads": 4},
    r"lsun_uncond_100M_.*": {"num_heads": 1},
}
# depth of guided-diffusion's released classifiers
CLASSIFIER_BLOCKS = {r"64x64_classifier": 4, r"(128x128|256x256|512x512)_classifier": 2}
# weight of the last layer, its axes, the pool that ends so
CLASSIFIER_POOLS = (
    ("out.2.c_proj.weight", 3, "attention"),
    ("out.3.weight", 4, "adaptive"),
    ("out.3.weight", 2, "spatial_v2"),
    ("out.2.weight", 2, "spatial"),
)
DIT_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
# arguments of EDM's wrappers that are not settings of the network
EDM_WRAPPER = ("use_fp16", "sigma_min", "sigma_max", "sigma_data", "M", "beta_d", "beta_min", "epsilon_t", "C_1", "C_2")


@dataclass(frozen=True)
class Kind:
    """State dicts of one repository.

    Attributes:
      title: for messages.
      marks: tensors that every such file has; a file is of the first kind of KINDS whose marks it has all.
      settings: (shapes, settings that the user states, stem of the file's name) -> config.json.
    """

    title: str
    marks: tuple[str, ...]
    settings: Callable[[FileShapes, Settings, str], Settings]


def pickled_network(tree: Any) -> tuple[str, Settings] | None:
    """(its name in the file, config.json) of the averaged network of an EDM or EDM2 pickle; None for other files."""
    if not isinstance(tree, dict):
        return None
    for name in ("ema", "net"):
        network = tree.get(name)
        if not isinstance(network, dict) or "_init_kwargs" not in network:
            continue
        wrapper, arguments = network["__class__"], dict(network["_init_kwargs"])
        for position, value in zip(("img_resolution", "img_channels"), network.get("_init_args", ()), strict=False):
            arguments[position] = value
        for unused in (*EDM_WRAPPER, "class_name"):
            arguments.pop(unused, None)
        if wrapper == "Precond":
            return name, {"class_name": CLASS_NAME, "label_dim": 0, **arguments}
        if wrapper.endswith("Precond"):
            # the defaults of the four wrappers
            usual = "DhariwalUNet" if wrapper in ("EDMPrecond", LEARNED_VARIANCE) else "SongUNet"
            model_type = arguments.setdefault("model_type", usual)
            if model_type not in DEFAULTS:
                raise CheckpointError(f"its network is a {model_type}; covered are {', '.join(DEFAULTS)}")
            extra = {"preconditioning": LEARNED_VARIANCE} if wrapper == LEARNED_VARIANCE else {}
            return name, COMMON | DEFAULTS[model_type] | arguments | extra
        raise CheckpointError(f"its network is a {wrapper}, which is not covered")
    return None


def adm_settings(shapes: FileShapes, given: Settings, stem: str) -> Settings:
    """The arguments of guided-diffusion's UNetModel."""
    blocks = _count(shapes, "output_blocks.{}.0.out_layers.3.weight")
    ups = {
        kind: [k for k in range(blocks) if any(f"output_blocks.{k}.{i}.{name}" in shapes for i in (1, 2))]
        for kind, name in (("conv", "conv.weight"), ("resblock", "in_layers.0.weight"))
    }
    levels = 1 + len(ups["conv"] or ups["resblock"])
    if blocks % levels:
        raise CheckpointError("its blocks do not make levels of equal length")
    channels, per_level = shapes["input_blocks.0.0.weight"][0], blocks // levels
    firsts = [f"output_blocks.{i * per_level}" for i in reversed(range(levels))]  # highest resolution first
    widths = [shapes[f"{first}.0.out_layers.3.weight"][0] for first in firsts]
    emb = shapes[f"{firsts[0]}.0.emb_layers.1.weight"][0]
    heads = next((found for name, found in ADM_HEADS.items() if re.fullmatch(name, stem)), {})
    if not {"num_heads", "num_head_channels"} & (heads | given).keys():
        raise CheckpointError(
            "the number of heads does not follow from the file; state it by --set num_heads=N or"
            " --set num_head_channels=N (and use_new_attention_order=true where it was trained so)"
        )
    classes = shapes.get("label_emb.weight")
    return {
        "image_size": 8 * 2 ** (levels - 1),  # as in the papers: levels go down to 8 pixels
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "model_channels": channels,
        "out_channels": shapes["out.2.weight"][0],
        "num_res_blocks": per_level - 1,
        "attention_resolutions": [2**i for i, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shapes],
        "dropout": 0.0,
        "channel_mult": [width // channels if width % channels == 0 else width / channels for width in widths],
        "num_classes": None if classes is None else classes[0],
        "use_scale_shift_norm": emb == 2 * widths[0],
        "resblock_updown": bool(ups["resblock"]),
        "use_new_attention_order": False,
        **heads,
        **given,
    }


def classifier_settings(shapes: FileShapes, given: Settings, stem: str) -> Settings:
    """The arguments of guided-diffusion's EncoderUNetModel, whose heads have 64 channels unless stated."""
    blocks = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("input_blocks."))
    attention = [f"input_blocks.{k}.1.qkv.weight" in shapes for k in range(blocks)]
    # Behind the last change of resolution, which has no attention, are the blocks of the last level.
    last = attention[::-1].index(False)
    known = (found for name, found in CLASSIFIER_BLOCKS.items() if re.fullmatch(name, stem))
    per_level = given.get("num_res_blocks") or next(known, last)
    if not per_level or blocks % (per_level + 1):
        raise CheckpointError("the blocks of a level do not follow from the file; state them by --set num_res_blocks=N")
    firsts = range(1, blocks, per_level + 1)
    widths = [shapes[f"input_blocks.{k}.0.out_layers.3.weight"][0] for k in firsts]
    channels = shapes["time_embed.0.weight"][1]
    positions = shapes.get("out.2.positional_embedding")
    side = 8 if positions is None else math.isqrt(positions[1] - 1)  # as in the papers: levels go down to 8 pixels
    pool, logits = next(
        (pool, shapes[name][0]) for name, axes, pool in CLASSIFIER_POOLS if len(shapes.get(name, ())) == axes
    )
    return {
        "image_size": side * 2 ** (len(widths) - 1),
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "model_channels": channels,
        "out_channels": logits,
        "num_res_blocks": per_level,
        "attention_resolutions": [2**level for level, k in enumerate(firsts) if attention[k]],
        "dropout": 0.0,
        "channel_mult": [width // channels if width % channels == 0 else width / channels for width in widths],
        "num_head_channels": 64,
        "use_scale_shift_norm": shapes["input_blocks.1.0.emb_layers.1.weight"][0] == 2 * widths[0],
        "resblock_updown": not any(name.endswith(".op.weight") for name in shapes),
        "use_new_attention_order": False,
        "pool": pool,
        **given,
    }


def dit_settings(shapes: FileShapes, given: Settings, stem: str) -> Settings:
    """The arguments of DiT; SiT's by the name of the file, or where the user says so."""
    width, channels, patch, _ = shapes["x_embedder.proj.weight"]
    if width not in DIT_HEADS and "num_heads" not in given:
        raise CheckpointError(f"the heads of a width of {width} do not follow from the file; use --set num_heads=N")
    config: Settings = {
        "patch_size": patch,
        "in_channels": channels,
        "hidden_size": width,
        "depth": _count(shapes, "blocks.{}.attn.qkv.weight"),
        "num_heads": DIT_HEADS.get(width),
        "num_classes": shapes["y_embedder.embedding_table.weight"][0] - 1,
        "learn_sigma": shapes["final_layer.linear.weight"][0] == 2 * channels * patch**2,
    }
    if "pos_embed" in shapes:
        config["input_size"] = patch * math.isqrt(shapes["pos_embed"][1])
    if stem.startswith("SiT"):
        config["model_type"] = "SiT"
    return config | given


def ddpm_settings(shapes: FileShapes, given: Settings, stem: str) -> Settings:
    """The arguments of the Model of DDPM's port."""
    levels = _count(shapes, "down.{}.block.0.conv1.weight")
    channels = shapes["conv_in.weight"][0]
    attention = [level for level in range(levels) if f"down.{level}.attn.0.{ATTENTION['to_q']}.weight" in shapes]
    resolution = 16 * 2 ** attention[0] if attention else 4 * 2 ** (levels - 1)  # the papers' is at 16 pixels
    return {
        "ch": channels,
        "out_ch": shapes["conv_out.weight"][0],
        "ch_mult": [shapes[f"down.{level}.block.0.conv1.weight"][0] // channels for level in range(levels)],
        "num_res_blocks": _count(shapes, "down.0.block.{}.conv1.weight"),
        "attn_resolutions": [resolution >> level for level in attention],
        "dropout": 0.0,
        "in_channels": shapes["conv_in.weight"][1],
        "resolution": resolution,
        "resamp_with_conv": True,
        **given,
    }


KINDS = (
    Kind(
        "improved-diffusion or guided-diffusion",
        ("input_blocks.0.0.weight", "output_blocks.0.0.in_layers.0.weight", "out.2.weight"),
        adm_settings,
    ),
    Kind(
        "guided-diffusion's classifiers",
        ("input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight"),
        classifier_settings,
    ),
    Kind("DiT or SiT", ("x_embedder.proj.weight", "y_embedder.embedding_table.weight"), dit_settings),
    Kind("DDPM", ("temb.dense.0.weight", "mid.block_1.norm1.weight"), ddpm_settings),
)


def state_dict(names: FileShapes) -> tuple[Kind, str] | None:
    """(whose state dict, prefix of its names) in a file with these tensors; averaged parameters before others."""
    for kind in KINDS:
        first = kind.marks[0]
        prefixes = {name.removesuffix(first) for name in names if name == first or name.endswith("." + first)}
        whole = [prefix for prefix in prefixes if all(prefix + mark in names for mark in kind.marks)]
        if whole:
            return kind, min(whole, key=lambda prefix: ("ema" not in prefix, len(prefix)))
    return None


def _count(shapes: FileShapes, pattern: str) -> int:
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    return count
