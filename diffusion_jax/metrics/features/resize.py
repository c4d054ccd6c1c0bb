"""Resizing in the manners of the reference implementations, which give different scores.

Every manner is linear and separable: one matrix for the rows and one for the columns.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

# NumPy on the host, JAX in a compiled program.
Images = TypeVar("Images", np.ndarray, jax.Array)

# How images come to the size of the network.
TF1_BILINEAR = "bilinear of TensorFlow 1 (align_corners=False, no half-pixel centres, no antialiasing)"
BILINEAR = "bilinear, half-pixel centres, no antialiasing"
BICUBIC = "bicubic (a=-0.5), antialiased, float"
BICUBIC_CLIPPED = "bicubic (a=-0.5), antialiased, float, clipped to 0..255"
BICUBIC_UINT8 = "bicubic (a=-0.5), antialiased, rounded to uint8 after each axis"


def resize(images: Images, height: int, width: int, manner: str) -> Images:
    """Images uint8, or levels float32, [B, H, W, C] as float32 [B, height, width, C], 0 to 255.

    The references: TF1_BILINEAR is `tf.image.resize_bilinear` of TensorFlow 1; BILINEAR is PyTorch's
    `interpolate(mode="bilinear", align_corners=False)`; BICUBIC is PyTorch's antialiased bicubic and, clipped,
    Pillow's on float images; BICUBIC_UINT8 is Pillow's on uint8 images, which rounds between the axes as here
    (coefficients there have 22 bits, so that a level may differ by one). NumPy
    arrays are resized on the host, where no size has to be compiled.
    """
    x = images.astype(np.float32)
    columns, rows = (_matrix(n, m, manner) for n, m in ((images.shape[2], width), (images.shape[1], height)))
    if images.shape[2] != width:
        x = _settled(_along(x, columns, 2), manner)
    if images.shape[1] != height:
        x = _settled(_along(x, rows, 1), manner)
    return x.clip(0.0, 255.0) if manner == BICUBIC_CLIPPED else x


def fit_shorter_side(height: int, width: int, size: int) -> tuple[int, int]:
    """The size whose shorter side is `size`, the longer one cut to a whole pixel, as torchvision's Resize has it."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def center_crop(images: Images, size: int) -> Images:
    """The central square [B, size, size, C], the margins rounded half to even, as torchvision's CenterCrop has them."""
    top, left = (round((side - size) / 2) for side in images.shape[1:3])
    return images[:, top : top + size, left : left + size]


def _along(x: Images, matrix: NDArray[np.float32], axis: int) -> Images:
    """The matrix times the axis, 1 or 2, of images [N, H, W, C]."""
    if isinstance(x, np.ndarray):
        # in float64, so that what the matrix brings halfway between two levels is rounded as it should be
        return np.moveaxis(np.tensordot(matrix.astype(np.float64), x, (1, axis)), 0, axis).astype(np.float32)
    form = "pw,nhwc->nhpc" if axis == 2 else "oh,nhpc->nopc"
    return jnp.einsum(form, matrix, x, precision="highest")


def _settled(x: Images, manner: str) -> Images:
    # halves up, as Pillow's fixed-point numbers have it
    if manner != BICUBIC_UINT8:
        return x
    floor: Any = np.floor if isinstance(x, np.ndarray) else jnp.floor
    return floor(x + 0.5).clip(0.0, 255.0)


def _matrix(source: int, target: int, manner: str) -> NDArray[np.float32]:
    """[target, source]: the weight of each pixel in each new pixel."""
    if manner == TF1_BILINEAR:
        return _tf1_matrix(source, target)
    if manner == BILINEAR:
        return _filter_matrix(source, target, antialias=False, cubic=False)
    if manner in (BICUBIC, BICUBIC_CLIPPED, BICUBIC_UINT8):
        return _filter_matrix(source, target, antialias=True, cubic=True)
    raise ValueError(f"resize {manner!r} is unknown")


def _tf1_matrix(source: int, target: int) -> NDArray[np.float32]:
    """New pixel i lies at i * source / target, between that pixel and the next; float32 as in TensorFlow's kernel."""
    place = np.arange(target, dtype=np.float32) * (np.float32(source) / np.float32(target))
    low = np.floor(place).astype(np.int64)
    weight = place - low.astype(np.float32)
    matrix = np.zeros((target, source), np.float32)
    matrix[np.arange(target), low] += 1 - weight
    matrix[np.arange(target), np.minimum(low + 1, source - 1)] += weight
    return matrix


def _filter_matrix(source: int, target: int, *, antialias: bool, cubic: bool) -> NDArray[np.float32]:
    """Half-pixel centres; the filter is as wide as a new pixel where that is larger, and cut and rescaled at borders.

    Without antialiasing, pixels beyond the border are the border's (which the cut filter gives for bilinear).
    """
    scale = source / target
    stretch = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(target) + 0.5) * scale
    distances = np.abs(np.arange(source) + 0.5 - centres[:, None]) / stretch
    if not cubic:
        weights = np.maximum(1 - distances, 0)
    else:
        inner = (1.5 * distances - 2.5) * distances**2 + 1
        outer = ((-0.5 * distances + 2.5) * distances - 4) * distances + 2
        weights = np.where(distances < 1, inner, np.where(distances < 2, outer, 0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
