"""Resizing agrees with the closed form of TensorFlow 1 and with Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from diffusion_jax.metrics.features import resize as resizing

RNG = np.random.default_rng(0)
# small to large, large to small, and sides that differ
SIZES = [((32, 32), (299, 299)), ((64, 48), (35, 31)), ((50, 70), (50, 91))]


def images(size):
    smooth = np.add.outer(np.linspace(0, 200, size[0]), np.linspace(0, 50, size[1]))[..., None] * [1.0, 0.5, 0.2]
    noise = RNG.integers(0, 256, (*size, 3))
    return np.stack([smooth, noise]).astype(np.uint8)


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bilinear_of_tensorflow_1(source, target):
    x = images(source)
    expected = np.empty((2, *target, 3))
    for row in range(target[0]):
        for column in range(target[1]):
            y, z = row * source[0] / target[0], column * source[1] / target[1]
            top, left = int(y), int(z)
            bottom, right = min(top + 1, source[0] - 1), min(left + 1, source[1] - 1)
            upper = x[:, top, left] * (1 - (z - left)) + x[:, top, right] * (z - left)
            lower = x[:, bottom, left] * (1 - (z - left)) + x[:, bottom, right] * (z - left)
            expected[:, row, column] = upper * (1 - (y - top)) + lower * (y - top)
    ours = resizing.resize(x, *target, resizing.TF1_BILINEAR)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=1e-3)


def test_the_corners_of_a_bilinear_enlargement():
    """Half-pixel centres keep the corners; TensorFlow 1 shifts everything towards the upper left."""
    x = np.array([0, 100], np.uint8).reshape(1, 1, 2, 1).repeat(2, axis=1)
    half = np.asarray(resizing.resize(x, 2, 4, resizing.BILINEAR))[0, 0, :, 0]
    shifted = np.asarray(resizing.resize(x, 2, 4, resizing.TF1_BILINEAR))[0, 0, :, 0]
    np.testing.assert_allclose(half, [0, 25, 75, 100])
    np.testing.assert_allclose(shifted, [0, 50, 100, 100])


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bicubic_of_pillow(source, target):
    x = images(source)
    clipped = resizing.resize(x, *target, resizing.BICUBIC_CLIPPED)
    rounded = np.asarray(resizing.resize(x, *target, resizing.BICUBIC_UINT8))
    for index in range(2):
        for channel in range(3):
            plane = Image.fromarray(x[index, :, :, channel].astype(np.float32))
            expected = np.asarray(plane.resize(target[::-1], Image.Resampling.BICUBIC)).clip(0, 255)
            np.testing.assert_allclose(clipped[index, :, :, channel], expected, atol=1e-2)
        expected = np.asarray(Image.fromarray(x[index]).resize(target[::-1], Image.Resampling.BICUBIC))
        difference = np.abs(rounded[index] - expected)
        assert difference.max() <= 1 and (difference > 0).mean() < 2e-3


def test_without_clipping_bicubic_overshoots():
    x = np.array([0, 0, 255, 255], np.uint8).reshape(1, 1, 4, 1).repeat(4, axis=1)
    free = np.asarray(resizing.resize(x, 4, 16, resizing.BICUBIC))
    assert free.min() < -5 and free.max() > 260
    np.testing.assert_array_equal(resizing.resize(x, 4, 16, resizing.BICUBIC_CLIPPED), free.clip(0, 255))


@pytest.mark.parametrize(
    ("size", "expected"), [((427, 640), (224, 335)), ((640, 427), (335, 224)), ((300, 300), (224, 224))]
)
def test_the_shorter_side_fits(size, expected):
    assert resizing.fit_shorter_side(*size, 224) == expected


def test_the_centre_is_cropped():
    x = np.arange(7 * 6).reshape(1, 7, 6, 1)
    np.testing.assert_array_equal(resizing.center_crop(x, 4)[0, :, :, 0], x[0, 2:6, 1:5, 0])


MANNERS = (
    resizing.TF1_BILINEAR,
    resizing.BILINEAR,
    resizing.BICUBIC,
    resizing.BICUBIC_CLIPPED,
    resizing.BICUBIC_UINT8,
)


@pytest.mark.parametrize("manner", MANNERS)
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_the_host_resizes_as_the_device(source, target, manner):
    x = images(source)
    host, device = resizing.resize(x, *target, manner), resizing.resize(jnp.asarray(x), *target, manner)
    assert isinstance(host, np.ndarray) and isinstance(device, jax.Array) and host.dtype == device.dtype == np.float32
    np.testing.assert_allclose(host, device, atol=1 if manner == resizing.BICUBIC_UINT8 else 1e-4)
    assert np.abs(host - np.asarray(device)).mean() < 1e-3
