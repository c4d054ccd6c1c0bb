"""The vision towers of CLIP (Radford et al. 2021): image embeddings for CMMD (ViT-L/14 at 336 pixels) and CLIP scores.

Features are the projected embeddings, of whatever length. Weights: files of whole models or of vision towers in the
layout of transformers (openai/clip-vit-large-patch14-336), and OpenAI's own (TorchScript, float16).
"""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.metrics import weights
from diffusion_jax.metrics.features import resize as resizing
from diffusion_jax.metrics.features.extractor import (
    Extractor,
    checked_batch,
    precision_name,
    unflattened,
    weights_sha256,
)
from diffusion_jax.metrics.features.transformer_weights import Names, Tensors, to_params
from diffusion_jax.metrics.features.vision_transformer import Architecture, VisionTransformer

HEAD = 64
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
# CMMD crops the central square and resizes it; CLIP's own preprocessing resizes the shorter side, then crops.
PREPROCESSING = ("cmmd", "clip")
_URL = "https://openaipublic.azureedge.net/clip/models"


class Network(NamedTuple):
    size: int
    width: int
    patch: int
    file: str
    sha256: str
    preprocessing: str


NETWORKS = {
    "clip-vitl14-336": Network(
        336, 1024, 14, "ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02", "cmmd"
    ),
    "clip-vitl14": Network(
        224, 1024, 14, "ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836", "clip"
    ),
    "clip-vitb32": Network(
        224, 768, 32, "ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af", "clip"
    ),
}
LAYOUTS = (
    Names(
        patch="vision_model.embeddings.patch_embedding",
        class_token="vision_model.embeddings.class_embedding",
        positions="vision_model.embeddings.position_embedding.weight",
        pre_norm="vision_model.pre_layrnorm",
        norm="vision_model.post_layernorm",
        projection="visual_projection",
        block="vision_model.encoder.layers.{}.",
        norm1="layer_norm1",
        joint=tuple(f"self_attn.{part}_proj" for part in ("q", "k", "v")),
        attention_out="self_attn.out_proj",
        norm2="layer_norm2",
        mlp_in=("mlp.fc1",),
        mlp_out=("mlp.fc2",),
    ),
    Names(
        patch="visual.conv1",
        class_token="visual.class_embedding",
        positions="visual.positional_embedding",
        pre_norm="visual.ln_pre",
        norm="visual.ln_post",
        projection="visual.proj",
        block="visual.transformer.resblocks.{}.",
        norm1="ln_1",
        joint=("attn.in_proj",),
        attention_out="attn.out_proj",
        norm2="ln_2",
        mlp_in=("mlp.c_fc",),
        mlp_out=("mlp.c_proj",),
    ),
)


def load(name: str, path: str | Path | None, fast: bool, preprocessing: str | None) -> Extractor:
    """The extractor of one of `NETWORKS`; its weights from a file, from a folder's model.safetensors, or downloaded.

    Raises:
      ValueError: in one line: no weights, unreadable ones, or those of another network.
    """
    network = NETWORKS[name]
    source = weights.Source(name, network.file, f"{_URL}/{network.sha256}/{network.file}", network.sha256)
    found = weights.find(source, weights.inside(path))
    leaves = weights.load(
        source, found, functools.partial(to_params, layouts=LAYOUTS, where=str(found), covers="vision tower of CLIP")
    )
    built = architecture(leaves, heads=leaves["class_token"].shape[0] // HEAD)
    size = built.grid * built.patch
    if (size, built.width, built.patch) != network[:3]:
        raise ValueError(
            f"{found}: a vision tower of width {built.width} for patches of {built.patch} and images of {size} pixels, "
            f"which is not {name}"
        )
    return extractor(name, built, unflattened(leaves), fast, preprocessing or network.preprocessing)


def architecture(leaves: Tensors, *, heads: int) -> Architecture:
    """What the shapes of the parameters tell, with the activation of OpenAI's networks."""
    return Architecture(
        width=leaves["patch/kernel"].shape[1],
        depth=sum(name.endswith("/norm1/scale") for name in leaves),
        heads=heads,
        hidden=leaves["block_0/mlp_out/kernel"].shape[0],
        patch=math.isqrt(leaves["patch/kernel"].shape[0] // 3),
        grid=math.isqrt(leaves["positions"].shape[0] - 1),
        activation="quick_gelu",
        epsilon=1e-5,
        patch_bias=False,
        pre_norm=True,
        layer_scale=False,
        projection=leaves["projection/kernel"].shape[1],
    )


def extractor(name: str, architecture: Architecture, params: Any, fast: bool, preprocessing: str) -> Extractor:
    """The extractor of these parameters; raises ValueError for an unknown preprocessing."""
    if preprocessing not in PREPROCESSING:
        raise ValueError(
            f"preprocessing {preprocessing!r} is unknown for {name}; it could be {', '.join(PREPROCESSING)}"
        )
    assert architecture.projection is not None
    network, size = VisionTransformer(architecture, fast), architecture.grid * architecture.patch
    mean, deviation = (np.array(part, np.float32) for part in (MEAN, DEVIATION))

    def fit(images: Any) -> Any:
        height, width = images.shape[1:3]
        if preprocessing == "cmmd":
            square = resizing.center_crop(images, min(height, width))
            return resizing.resize(square, size, size, resizing.BICUBIC_UINT8)
        height, width = resizing.fit_shorter_side(height, width, size)
        return resizing.center_crop(resizing.resize(images, height, width, resizing.BICUBIC_UINT8), size)

    def apply_fitted(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        return {"features": jnp.asarray(network.apply({"params": params}, (x / 255 - mean) / deviation))}

    def apply(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        return apply_fitted(params, fit(checked_batch(images)))

    settings = {
        "preprocessing": preprocessing,
        "input_size": size,
        "resize": resizing.BICUBIC_UINT8,
        "scaling": "x / 255, CLIP's mean and deviation",
        "precision": precision_name(fast),
    }
    digest, width = weights_sha256(params), architecture.projection
    return Extractor(name, apply, params, width, digest, settings, fit=fit, apply_fitted=apply_fitted)
