"""The original names of Stable Diffusion's networks (CompVis and Stability AI), as single-file checkpoints have them.

Such a file states no settings: they follow from shapes, in the terms of diffusers' config.json. What no shape tells
(heads, factors of the latents) is that of the family the shapes belong to.
"""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.hub import ddpm, diffusers, openai_unet
from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.format import Config
from diffusion_jax.hub.tensors import Shapes, Tensor, leaf_name, parameter
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.models.conditional_unet import ConditionalUNet

FileShapes = Mapping[str, tuple[int, ...]]
# width of the text's features -> family, and the side of the latents it was made for
FAMILIES = {768: ("Stable Diffusion 1", 64), 1024: ("Stable Diffusion 2", 96), 2048: ("SDXL", 128), 1280: ("SDXL", 128)}
HEAD_WIDTH, HEADS_OF_SD1 = 64, 8
TIME_IDS_CHANNELS = 256


def unet_config(shapes: FileShapes, given: Config) -> dict[str, Any]:
    """The settings of UNet2DConditionModel for these tensors (names without their prefix).

    ``given`` are those that the user states, for networks whose text has another width than Stable Diffusion's.
    """
    levels: list[list[tuple[int, int]]] = [[]]  # of each level's blocks: width, transformer blocks
    block = 1
    while True:
        name = f"input_blocks.{block}.0"
        if f"{name}.op.weight" in shapes:
            levels.append([])
        elif f"{name}.out_layers.3.weight" in shapes:
            levels[-1].append((shapes[f"{name}.out_layers.3.weight"][0], _depth(shapes, f"input_blocks.{block}.1")))
        else:
            break
        block += 1
    if any(not blocks or len(set(blocks)) > 1 or len(blocks) != len(levels[0]) for blocks in levels):
        raise CheckpointError("the names of its tensors are not those of Stable Diffusion's U-Net")
    widths, depths = ([blocks[0][i] for blocks in levels] for i in (0, 1))
    middle = _depth(shapes, "middle_block.1")
    keys = [shape for name, shape in shapes.items() if name.endswith(".attn2.to_k.weight")]
    if not keys or not middle:
        raise CheckpointError("its U-Net has no attention to a text")
    context = keys[0][1]
    if context not in FAMILIES and "attention_head_dim" not in given:
        known = ", ".join(f"{width} ({name})" for width, (name, _) in FAMILIES.items())
        raise CheckpointError(
            f"its U-Net reads text of width {context}; known are {known}; of another network config must state the"
            " heads, attention_head_dim"
        )
    linear = len(shapes["middle_block.1.proj_in.weight"]) == 2
    pooled = shapes.get("label_emb.0.0.weight")
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": FAMILIES[context][1] if context in FAMILIES else None,
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": len(levels[0]),
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        # the middle has the depth of the last level, where there may be none
        "transformer_layers_per_block": [max(depth, 1) for depth in depths[:-1]] + [middle],
        "attention_head_dim": [width // HEAD_WIDTH if linear else HEADS_OF_SD1 for width in widths],
        "use_linear_projection": linear,
        "cross_attention_dim": context,
        "addition_embed_type": None if pooled is None else "text_time",
        "addition_time_embed_dim": None if pooled is None else TIME_IDS_CHANNELS,
        "projection_class_embeddings_input_dim": None if pooled is None else pooled[1],
        **given,
    }


def vae_config(shapes: FileShapes, given: Config, family: str | None) -> dict[str, Any]:
    """The settings of AutoencoderKL for these tensors, and those that the user states.

    ``family`` is the one that the rest of the file belongs to: SDXL's autoencoder has the shapes of the others, but its
    latents another factor.
    """
    widths = []
    while (name := f"encoder.down.{len(widths)}.block.0.conv1.weight") in shapes:
        widths.append(shapes[name][0])
    if not widths or "encoder.conv_out.weight" not in shapes:
        raise CheckpointError("the names of its tensors are not those of Stable Diffusion's autoencoder")
    blocks = sum(name.startswith("encoder.down.0.block.") and name.endswith(".conv1.weight") for name in shapes)
    scaling, size = (0.13025, 1024) if family == "SDXL" else (0.18215, 512)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shapes["encoder.conv_in.weight"][1],
        "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["encoder.conv_out.weight"][0] // 2,
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": blocks,
        "sample_size": size,
        "scaling_factor": scaling,
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
        **given,
    }


def unet_tensors(model: ConditionalUNet, shapes: Shapes, config: Config) -> list[Tensor]:
    names = openai_unet.module_names(model.attention, model.num_res_blocks, resblock=False)
    names |= {("add_embedding", "linear_1"): "label_emb.0.0", ("add_embedding", "linear_2"): "label_emb.0.2"}
    layout = []
    for path, shape in shapes.items():
        depth = next(depth for depth in (2, 3, 1) if path[:depth] in names)
        block, inside = names[path[:depth]], path[depth:-1]
        if inside and inside[0] in openai_unet.RESNET:
            block, inside = f"{block}.{openai_unet.RESNET[inside[0]]}", ()
        name = ".".join((block, *([diffusers.module_name(inside)] if inside else []), leaf_name(path)))
        layout.append(parameter(name, path, shape))
    return layout


def vae_tensors(model: AutoencoderKL, shapes: Shapes, config: Config) -> list[Tensor]:
    layout = []
    for path, shape in shapes.items():
        side = f"{path[0]}." if len(path) > 2 else ""  # the encoder and decoder; quant_conv stands alone
        inside = path[1:-1] if side else path[:-1]
        layout.append(ddpm.convolutional(side + ddpm.module_name(inside, len(model.widths)), path, shape))
    return layout


def _depth(shapes: FileShapes, block: str) -> int:
    """Transformer blocks of an attention; 0 for anything else."""
    count = 0
    while f"{block}.transformer_blocks.{count}.norm1.weight" in shapes:
        count += 1
    return count
