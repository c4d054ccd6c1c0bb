"""Affine transforms of images without aliasing: enlarge with a wavelet filter, interpolate, shrink with it again."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Scaling filter of Daubechies' symlet with six vanishing moments: its even shifts are orthonormal, so that shrinking
# undoes enlarging exactly.
SYM6 = np.array(
    [
        *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
        *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
        *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
    ]
)
# Tap under which a pixel lies, and pixels that the filter reaches to either side of the image that is kept.
_CENTRE = 5
_BORDER = 3


def warp(image: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    """The image [H, W, C] whose pixel at p shows what was at matrix (p - shift), float32.

    p = (x, y) in pixels from the middle of the image, y downwards; matrix: [2, 2], shift: [2]. The image is continued
    by its mirror image, once to each side, and by zeros beyond. This is the resampling of Karras et al. 2020
    (arXiv:2006.06676, appendix B), as in EDM's released code.
    """
    height, width, _ = image.shape
    rows, columns = (jnp.asarray(_enlarge(size), jnp.float32) for size in (height, width))
    large = _separable(rows, columns, image.astype(jnp.float32))

    # In the enlarged image, pixel i of the mirrored one lies at 2 i.
    y, x = jnp.meshgrid(*(jnp.arange(2 * (size + 2 * _BORDER)) for size in (height, width)), indexing="ij")
    place = [(x - width - 2 * _BORDER + 1) / 2 - shift[0], (y - height - 2 * _BORDER + 1) / 2 - shift[1]]
    x, y = (matrix[i, 0] * place[0] + matrix[i, 1] * place[1] for i in (0, 1))
    coordinates = [2 * y + 3 * (height - 1), 2 * x + 3 * (width - 1)]
    large = jax.vmap(
        lambda channel: jax.scipy.ndimage.map_coordinates(channel, coordinates, order=1), in_axes=-1, out_axes=-1
    )(large)

    rows, columns = (jnp.asarray(_shrink(size), jnp.float32) for size in (height, width))
    return _separable(rows, columns, large)


def _separable(rows: jax.Array, columns: jax.Array, image: jax.Array) -> jax.Array:
    return jnp.einsum("yi,xj,ijc->yxc", rows, columns, image, precision="highest")


@functools.cache
def _enlarge(size: int) -> np.ndarray:
    """Mirrors to either side and doubles the resolution, float64 [2 (3 size - 2), size]."""
    mirrored = 3 * size - 2
    matrix = np.zeros((2 * mirrored, size))
    for i in range(mirrored):
        distance = abs(i - (size - 1))
        source = distance if distance < size else 2 * (size - 1) - distance
        for tap, weight in enumerate(SYM6):
            if 0 <= (place := 2 * i + tap - _CENTRE) < 2 * mirrored:
                matrix[place, source] += weight
    return matrix


@functools.cache
def _shrink(size: int) -> np.ndarray:
    """Halves the resolution and cuts off the border, float64 [size, 2 (size + 2 border)]."""
    matrix = np.zeros((size, 2 * (size + 2 * _BORDER)))
    for i in range(size):
        start = 2 * (i + _BORDER) - _CENTRE
        matrix[i, start : start + len(SYM6)] = SYM6
    return matrix
