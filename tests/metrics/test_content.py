"""The hash of a set of images."""

import numpy as np
import pytest

from diffusion_jax.metrics.content import ContentHash

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)


def hashed(images, *parts):
    content = ContentHash()
    for part in parts or [np.arange(len(images))]:
        content.add(part, images[part])
    return content.hexdigest()


def test_whoever_reads_which_part():
    whole = hashed(IMAGES)
    assert len(whole) == 64
    assert hashed(IMAGES, np.arange(6, 12), np.arange(6)) == whole
    assert hashed(IMAGES, np.arange(0, 12, 2), np.arange(1, 12, 2)) == whole


@pytest.mark.parametrize(
    "other",
    [
        IMAGES[::-1],
        IMAGES[:-1],
        IMAGES.reshape(12, 2, 8, 3),
        IMAGES.view(np.int8),
        np.where(np.arange(12)[:, None, None, None] == 7, IMAGES ^ 1, IMAGES),
        IMAGES[[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]],
    ],
)
def test_anything_else_is_other_content(other):
    assert hashed(other) != hashed(IMAGES)
