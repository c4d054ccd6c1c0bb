"""Digits as wavelets: nothing is lost, and the pixels' energy is that of the coefficients."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import data
from diffusion_jax.data.sources import haar_digits


def test_decoding_gives_the_digits_of_twice_the_size():
    source = data.load_source("haar_digits", "test", image_size=8, channels=4)
    latents, labels = data.load_arrays(source)
    whole = data.load_source("digits", "test", image_size=16, channels=1)
    images, expected = data.load_arrays(whole)
    assert latents.shape == (359, 8, 8, 4) and latents.dtype == np.float32
    np.testing.assert_array_equal(labels, expected)
    for convert in (np.asarray, jnp.asarray):
        np.testing.assert_array_equal(data.to_uint8(np.asarray(haar_digits.decode(convert(latents)))), images)


def test_the_basis_is_orthonormal_and_its_first_vector_the_mean():
    images = np.random.default_rng(0).normal(size=(3, 4, 6, 1)).astype(np.float32)
    latents = haar_digits.encode(images)
    np.testing.assert_allclose((latents**2).sum(), (images**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(latents[1, 0, 2, 0], images[1, :2, 4:6].mean() * 2, rtol=1e-5)
    np.testing.assert_allclose(haar_digits.decode(latents), images, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 3}, "channels must be 4 for haar_digits, got 3"),
        ({"image_size": 3}, "image_size must be 8 or a mul"),
    ],
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        data.load_source("haar_digits", "train", **{"image_size": 8, "channels": 4, **options})
