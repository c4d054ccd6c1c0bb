"""Between uint8 pixels, the form at every border, and float32 in [-1, 1], the form inside."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Rounding = Literal["half_up", "floor"]


def to_float(images: np.ndarray) -> np.ndarray:
    """x / 127.5 - 1, without dequantisation (Ho et al. 2020, section 3.3).

    Args:
        images: uint8, any shape.

    Returns:
        float32 in [-1, 1] of the same shape; 0 becomes exactly -1 and 255 exactly 1.

    Raises:
        ValueError: another dtype.
    """
    if images.dtype != np.uint8:
        raise ValueError(f"to_float: images must be uint8, got {images.dtype}")
    scaled = images.astype(np.float32)
    scaled /= np.float32(127.5)
    scaled -= np.float32(1)
    return scaled


def to_uint8(images: np.ndarray, rounding: Rounding = "half_up") -> np.ndarray:
    """Quantises [-1, 1] to the 256 levels, clipping what lies outside.

    Published code rounds in two ways, which differ by up to one level and by about 0.01 of FID:

    - ``half_up``: floor(127.5 x + 128), the nearest level with halves up. EDM, DiT and torchcfm; undoes ``to_float``.
    - ``floor``: floor(127.5 (x + 1)). Improved DDPM and guided-diffusion (there called truncation).

    Args:
        images: float, any shape.
        rounding: one of the names above; it belongs beside every score computed from the result.

    Returns:
        uint8 of the same shape.

    Raises:
        ValueError: an unknown rounding, an integer dtype, or a NaN.
    """
    if rounding not in get_args(Rounding):
        raise ValueError(f"to_uint8: rounding must be one of {', '.join(get_args(Rounding))}, got {rounding!r}")
    # bfloat16 is not a NumPy floating type, so what is refused is what would be silently wrong.
    if np.issubdtype(images.dtype, np.integer) or images.dtype == np.bool_:
        raise ValueError(f"to_uint8: images must be float in [-1, 1], got {images.dtype}")
    levels = images.astype(np.float32)
    if np.isnan(levels).any():
        raise ValueError("to_uint8: images contain NaN")
    levels = levels * np.float32(127.5) + np.float32(128) if rounding == "half_up" else (levels + 1) * np.float32(127.5)
    return np.clip(levels, 0, 255).astype(np.uint8)
