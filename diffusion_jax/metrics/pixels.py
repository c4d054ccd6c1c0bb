"""Images as arrays for measuring: checked, and averaged down to a smaller size."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

_CHUNK = 256


def checked_images(images: ArrayLike, name: str) -> NDArray[np.uint8]:
    """The images, if they are uint8 [N, H, W, C]; raises ValueError naming them otherwise."""
    array = np.asarray(images)
    if array.dtype != np.uint8 or array.ndim != 4:
        raise ValueError(f"{name} must be uint8 images [N, H, W, C], got {array.dtype} {array.shape}")
    return array


def average_down(images: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Images [N, H, W, C] as float32 0 to 255, the sides that are longer than `size` averaged down to it.

    Each new pixel is the mean of the area that it covers, pixels cut by a border counting in part; so nothing
    aliases.
    """
    height, width, channels = images.shape[1:]
    rows, columns = area_weights(height, min(height, size)), area_weights(width, min(width, size))
    averaged = np.empty((len(images), len(rows), len(columns), channels), np.float32)
    # In pieces, because float32 copies of many large images would not fit in memory.
    for start in range(0, len(images), _CHUNK):
        chunk = images[start : start + _CHUNK].astype(np.float32)
        if height > size or width > size:
            chunk = np.einsum("oh,pw,nhwc->nopc", rows, columns, chunk, optimize=True)
        averaged[start : start + _CHUNK] = chunk
    return averaged


def area_weights(source: int, target: int) -> NDArray[np.float32]:
    """[target, source]: the share of each source pixel in each target pixel; rows sum to one."""
    edges = np.arange(target + 1) * (source / target)
    starts, ends = edges[:-1, None], edges[1:, None]
    left = np.arange(source)[None, :]
    overlap = np.minimum(ends, left + 1) - np.maximum(starts, left)
    return (np.maximum(overlap, 0.0) * (target / source)).astype(np.float32)
