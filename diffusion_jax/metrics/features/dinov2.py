"""DINOv2 (Oquab et al. 2023), the networks without registers: the features of FD-DINOv2 (Stein et al. 2023).

Features are the class token after the last normalisation, of images of 224 pixels. Weights: the original files
(dinov2_vitl14_pretrain.pth) and those of facebook/dinov2-large in the layout of transformers.
"""

import functools
import math
from pathlib import Path
from typing import Any

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

SIZE, PATCH, HEAD = 224, 14, 64
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# name -> width and depth
NETWORKS = {
    "dinov2-vits14": (384, 12),
    "dinov2-vitb14": (768, 12),
    "dinov2-vitl14": (1024, 24),
    "dinov2-vitg14": (1536, 40),
}
# what dgm-eval, which introduced the metric, and EDM2 do
PREPROCESSING = {"dgm-eval": resizing.BICUBIC_UINT8, "edm2": resizing.BICUBIC}
LAYOUTS = (
    Names(
        patch="embeddings.patch_embeddings.projection",
        class_token="embeddings.cls_token",
        positions="embeddings.position_embeddings",
        norm="layernorm",
        block="encoder.layer.{}.",
        norm1="norm1",
        joint=tuple(f"attention.attention.{part}" for part in ("query", "key", "value")),
        attention_out="attention.output.dense",
        norm2="norm2",
        mlp_in=("mlp.fc1", "mlp.weights_in"),
        mlp_out=("mlp.fc2", "mlp.weights_out"),
        scale1="layer_scale1.lambda1",
        scale2="layer_scale2.lambda1",
    ),
    Names(
        patch="patch_embed.proj",
        class_token="cls_token",
        positions="pos_embed",
        norm="norm",
        block="blocks.{}.",
        norm1="norm1",
        joint=("attn.qkv",),
        attention_out="attn.proj",
        norm2="norm2",
        mlp_in=("mlp.fc1", "mlp.w12"),
        mlp_out=("mlp.fc2", "mlp.w3"),
        scale1="ls1.gamma",
        scale2="ls2.gamma",
    ),
)


def load(name: str, path: str | Path | None, fast: bool, preprocessing: str | None) -> Extractor:
    """The extractor of one of `NETWORKS`; its weights from a file, from a folder's model.safetensors, or downloaded.

    Raises:
      ValueError: in one line: no weights, unreadable ones, or those of another network.
    """
    preprocessing = preprocessing or "dgm-eval"
    if preprocessing not in PREPROCESSING:
        raise ValueError(
            f"preprocessing {preprocessing!r} is unknown for {name}; it could be {', '.join(PREPROCESSING)}"
        )
    short = name.removeprefix("dinov2-")
    file = f"dinov2_{short}_pretrain.pth"
    source = weights.Source(name, file, f"https://dl.fbaipublicfiles.com/dinov2/dinov2_{short}/{file}")
    found = weights.find(source, weights.inside(path))
    convert = functools.partial(to_params, layouts=LAYOUTS, where=str(found), covers="DINOv2")
    leaves = weights.load(source, found, convert)
    built = architecture(leaves, heads=leaves["class_token"].shape[0] // HEAD)
    if (built.width, built.depth) != NETWORKS[name]:
        raise ValueError(f"{found}: a DINOv2 of width {built.width} and depth {built.depth}, which is not {name}")
    return extractor(name, built, unflattened(leaves), fast, preprocessing)


def architecture(leaves: Tensors, *, heads: int) -> Architecture:
    """What the shapes of the parameters tell, with the original's way of interpolating position embeddings."""
    width, hidden = leaves["patch/kernel"].shape[1], leaves["block_0/mlp_out/kernel"].shape[0]
    swiglu = leaves["block_0/mlp_in/kernel"].shape[1] == 2 * hidden
    return Architecture(
        width=width,
        depth=sum(name.endswith("/scale1") for name in leaves),
        heads=heads,
        hidden=hidden,
        patch=PATCH,
        grid=math.isqrt(leaves["positions"].shape[0] - 1),
        activation="swiglu" if swiglu else "gelu",
        epsilon=1e-6,
        patch_bias=True,
        pre_norm=False,
        layer_scale=True,
        projection=None,
        interpolation_offset=0.1,
    )


def extractor(name: str, architecture: Architecture, params: Any, fast: bool, preprocessing: str) -> Extractor:
    """The extractor of these parameters."""
    network = VisionTransformer(architecture, fast)
    resize = PREPROCESSING[preprocessing]
    mean, deviation = (np.array(part, np.float32) for part in (MEAN, DEVIATION))

    def fit(images: Any) -> Any:
        return resizing.resize(images, SIZE, SIZE, resize)

    def apply_fitted(params: Any, x: jax.Array) -> dict[str, jax.Array]:
        return {"features": jnp.asarray(network.apply({"params": params}, (x / 255 - mean) / deviation))}

    def apply(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        return apply_fitted(params, fit(checked_batch(images)))

    settings = {
        "preprocessing": preprocessing,
        "input_size": SIZE,
        "resize": resize,
        "scaling": "x / 255, ImageNet's mean and deviation",
        "precision": precision_name(fast),
    }
    digest = weights_sha256(params)
    return Extractor(name, apply, params, architecture.width, digest, settings, fit=fit, apply_fitted=apply_fitted)
