"""CLIP's text encoder in single-file checkpoints: under transformers' names, or under OpenCLIP's.

Stable Diffusion 1 and the first encoder of SDXL have transformers' names behind a prefix. Stable Diffusion 2 and the
second encoder of SDXL have OpenCLIP's (Ilharco et al. 2021, open_clip/transformer.py): query, key and value are one
matrix there, and the projection is stored as [width, projection].
"""

from collections.abc import Mapping
from typing import Any

from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.format import Config
from diffusion_jax.hub.tensors import Path, Shapes, Tensor, as_stored, fused_attention, leaf_name, parameter
from diffusion_jax.hub.text_encoders import CLIP_FORMAT, PREFIXED, PROJECTED
from diffusion_jax.models.text import CLIPText

FileShapes = Mapping[str, tuple[int, ...]]
TRANSFORMERS, OPEN_CLIP = "text_model.embeddings.token_embedding.weight", "token_embedding.weight"
HEAD_WIDTH = 64  # of all published encoders
# Stable Diffusion 2 reads the last layer but one (23 of 24): the last and what stands behind it are not used
SD2_LAYERS = 23
BLOCK = "transformer.resblocks"
# Path of a module of a layer here -> its name there; query, key and value are apart.
LAYER = {
    ("layer_norm1",): "ln_1",
    ("layer_norm2",): "ln_2",
    ("mlp_fc1",): "mlp.c_fc",
    ("mlp_fc2",): "mlp.c_proj",
    ("self_attn", "out_proj"): "attn.out_proj",
}
FUSED = tuple(("self_attn", name) for name in ("q_proj", "k_proj", "v_proj"))


def transformers_config(shapes: FileShapes, given: Config) -> dict[str, Any]:
    """The settings of CLIPTextModel for the tensors of Stable Diffusion 1 (names without their prefix)."""
    prefix = "text_model."
    return {
        "architectures": ["CLIPTextModel"],
        "hidden_act": "quick_gelu",
        PREFIXED: True,
        **_sizes(
            shapes,
            tokens=shapes[TRANSFORMERS],
            positions=f"{prefix}embeddings.position_embedding.weight",
            mlp=f"{prefix}encoder.layers.{{}}.mlp.fc1.weight",
            given=given,
        ),
        **given,
    }


def open_clip_config(shapes: FileShapes, given: Config, projected: bool) -> dict[str, Any]:
    """The settings of CLIPTextModel for OpenCLIP's tensors; ``projected``: the projection is a part of it."""
    sizes = _sizes(
        shapes,
        tokens=shapes[OPEN_CLIP],
        positions="positional_embedding",
        mlp=f"{BLOCK}.{{}}.mlp.c_fc.weight",
        given=given,
    )
    if projected:
        if "text_projection" not in shapes:
            raise CheckpointError("its second text encoder has no text_projection")
        sizes["projection_dim"] = shapes["text_projection"][1]
    else:
        sizes["num_hidden_layers"] = min(sizes["num_hidden_layers"], SD2_LAYERS)
    architecture = PROJECTED if projected else "CLIPTextModel"
    return {"architectures": [architecture], "hidden_act": "gelu", **sizes, **given}


def open_clip_tensors(model: CLIPText, shapes: Shapes, config: Config) -> list[Tensor]:
    """OpenCLIP's tensors for the parameters of a text encoder."""
    layout = []
    for path, shape in shapes.items():
        module, inside = path[0], path[1:-1]
        if module == "text_projection":
            layout.append(as_stored("text_projection", path, shape))
        elif module == "position_embedding":
            layout.append(as_stored("positional_embedding", path, shape))
        elif module == "token_embedding":
            layout.append(as_stored(OPEN_CLIP, path, shape))
        elif module == "final_layer_norm":
            layout.append(parameter(f"ln_final.{leaf_name(path)}", path, shape))
        elif inside in LAYER:
            layout.append(parameter(f"{_block(module)}.{LAYER[inside]}.{leaf_name(path)}", path, shape))
        elif inside == FUSED[0]:
            layout.append(_in_proj(path, shape, model.num_heads))
    return layout


def is_unused(name: str, model: CLIPText) -> bool:
    """Whether a tensor of the file is no parameter of this network: tables, the scale of CLIP's loss, later layers."""
    if name.endswith("position_ids") or name == "logit_scale":
        return True
    if name == "text_projection":
        return model.projection is None
    layer = name.removeprefix(f"{BLOCK}.").partition(".")[0]
    return name.startswith(f"{BLOCK}.") and model.projection is None and int(layer) >= model.depth


def transformers_tensors(model: CLIPText, shapes: Shapes, config: Config) -> list[Tensor]:
    return list(CLIP_FORMAT.tensors(model, shapes, config))


def _in_proj(query: Path, shape: tuple[int, ...], heads: int) -> Tensor:
    """Query, key and value of one layer, one tensor there."""
    name = "in_proj_bias" if query[-1] == "bias" else "in_proj_weight"
    paths = tuple((query[0], *module, query[-1]) for module in FUSED)
    return fused_attention(f"{_block(query[0])}.attn.{name}", paths, shape, heads, axis=0, extra_axes=0)


def _block(module: str) -> str:
    return f"{BLOCK}.{module.removeprefix('layers_')}"


def _sizes(shapes: FileShapes, tokens: tuple[int, ...], positions: str, mlp: str, given: Config) -> dict[str, Any]:
    """What both layouts tell by shapes."""
    depth = 0
    while mlp.format(depth) in shapes:
        depth += 1
    if not depth or positions not in shapes:
        raise CheckpointError("the names of its tensors are not those of CLIP's text encoder")
    vocabulary, width = tokens
    if width % HEAD_WIDTH and "num_attention_heads" not in given:
        raise CheckpointError(
            f"its text encoder has width {width}, no multiple of {HEAD_WIDTH}; config must state num_attention_heads"
        )
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": shapes[mlp.format(0)][0],
        "num_hidden_layers": depth,
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": shapes[positions][0],
        "eos_token_id": vocabulary - 1,
    }
