"""Scores in CLIP's embedding space, on the host in float64: CMMD and the CLIP score."""

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.metrics.checks import Float64, checked_features, checked_pair

# Jayasumana et al. 2024, section 5.
BANDWIDTH, SCALE = 10.0, 1000.0
_BLOCK = 2048


def clip_mmd(real: ArrayLike, generated: ArrayLike) -> float:
    """CMMD of image embeddings [N, d] and [M, d] (CLIP ViT-L/14 at 336 pixels), lengths ignored.

    1000 times the squared maximum mean discrepancy with the kernel exp(-|x - y|^2 / (2 * 10^2)) (Jayasumana et al.
    2024, eq. 2), by the biased estimate, diagonal included, that the authors' code uses and the paper's formula does
    not. Blocks of the kernel matrix are summed as differences from 1, which it is close to. Raises ValueError for
    shapes that do not fit and an embedding of length 0.
    """
    x, y = (_unit(side, name) for side, name in zip(checked_pair(real, generated, "real", "generated", 1),
                                                   ("real", "generated"), strict=True))  # fmt: skip
    return float(SCALE * (_mean_kernel(x, x) + _mean_kernel(y, y) - 2.0 * _mean_kernel(x, y)))


def clip_score(images: ArrayLike, texts: ArrayLike, weight: float = 2.5) -> tuple[float, float]:
    """Mean of weight * max(cos(image, text), 0) over pairs of embeddings [N, d], and its standard error.

    Hessel et al. 2021, eq. 1, with weight 2.5, ViT-B/32 and the prefix "A photo depicts " before each text. Others use
    weight 100, no prefix and other networks: name all three beside the number. Raises ValueError for sides of unequal
    shape.
    """
    x, y = checked_pair(images, texts, "images", "texts", minimum=2)
    if len(x) != len(y):
        raise ValueError(f"images and texts must be pairs, got {len(x)} and {len(y)}")
    scores = weight * np.maximum((_unit(x, "images") * _unit(y, "texts")).sum(axis=1), 0.0)
    return float(scores.mean()), float(scores.std(ddof=1) / np.sqrt(len(scores)))


def _unit(values: ArrayLike, name: str) -> Float64:
    x = checked_features(values, name, minimum=1)
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError(f"{name} has an embedding of length 0, which has no direction")
    return x / lengths


def _mean_kernel(x: Float64, y: Float64) -> float:
    """The mean of the kernel minus 1 over all pairs of unit vectors, where |x - y|^2 = 2 - 2 x.y."""
    total = 0.0
    for i in range(0, len(x), _BLOCK):
        for j in range(0, len(y), _BLOCK):
            products = x[i : i + _BLOCK] @ y[j : j + _BLOCK].T
            total += np.expm1((products - 1.0) / BANDWIDTH**2).sum()
    return total / (len(x) * len(y))
