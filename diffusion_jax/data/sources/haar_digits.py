"""The digits in Haar's wavelets: latents of half the side and four channels with an exact inverse.

They stand in for an autoencoder's where there is none, as in quick runs of configs for latents.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_jax.data.images import to_float
from diffusion_jax.data.source import LABEL
from diffusion_jax.data.sources import digits

CHANNELS = 4
# Orthonormal: mean, and differences across, down and along the diagonal of 2x2 pixels (row by row).
BASIS = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]], np.float32) / 2


class HaarDigits:
    """One split, in memory; see `load`.

    Attributes beside those of a source:
        record: the "mean" and "std" of each channel over the training split, and the "decoder".
    """

    dtype = np.dtype(np.float32)

    def __init__(self, split: str, image_size: int):
        source = digits.load(split, image_size=2 * image_size)
        self.image_shape: tuple[int, int, int] = (image_size, image_size, CHANNELS)
        self.num_classes, self.class_names = source.num_classes, source.class_names
        self._latents, self._labels = encode(to_float(source.images)), source.labels
        train = encode(to_float(digits.load("train", image_size=2 * image_size).images))
        self.record: dict[str, Any] = {
            "decoder": "haar",
            "mean": train.mean((0, 1, 2)).tolist(),
            # Repeated pixels have no differences; their channels keep their size.
            "std": np.maximum(train.std((0, 1, 2)), 0.1).tolist(),
        }

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self._latents[index], "condition": {LABEL: self._labels[index]}}


def load(split: str, *, image_size: int, channels: int) -> HaarDigits:
    """The digits at 2 image_size pixels as latents float32 [image_size, image_size, 4].

    Raises:
        ValueError: an image_size that is no multiple of 4, or channels other than 4.
    """
    if channels != CHANNELS:
        raise ValueError(f"channels must be {CHANNELS} for haar_digits, got {channels}")
    return HaarDigits(split, image_size)


def encode(images: np.ndarray) -> np.ndarray:
    """Grey images [N, 2 H, 2 W, 1] -> [N, H, W, 4]."""
    count, height, width, _ = images.shape
    blocks = images.reshape(count, height // 2, 2, width // 2, 2).swapaxes(2, 3)
    return blocks.reshape(count, height // 2, width // 2, 4) @ BASIS.T


def decode(latents: Any) -> Any:
    """The inverse of `encode`, of NumPy or JAX arrays [N, H, W, 4] -> [N, 2 H, 2 W, 1]."""
    count, height, width, _ = latents.shape
    blocks = (latents @ BASIS).reshape(count, height, width, 2, 2).swapaxes(2, 3)
    return blocks.reshape(count, 2 * height, 2 * width, 1)
