"""The walk between two latents keeps to the sphere, and ends where it should."""

import types

import jax
import numpy as np
from PIL import Image

from diffusion_jax.methods import latent_walk


def test_an_arc_of_even_angles_between_its_ends():
    start, end = np.array([[1, 0, 0, 0]], np.float32), np.array([[0, 0, 2, 0]], np.float32)
    walk = np.asarray(latent_walk.spherical(start, end, 5), np.float64)[:, 0]
    angles = np.arange(5) / 4 * np.pi / 2
    expected = np.stack([np.cos(angles), 0 * angles, 2 * np.sin(angles), 0 * angles], -1)
    np.testing.assert_allclose(walk, expected, atol=1e-6)


def test_latents_that_are_parallel_are_walked_straight():
    start = np.array([[1.0, 2.0]], np.float32)
    walk = np.asarray(latent_walk.spherical(start, 3 * start, 3))
    np.testing.assert_allclose(walk[:, 0], [[1, 2], [2, 4], [3, 6]], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(latent_walk.spherical(start, -start, 3))[1], [[0, 0]], atol=1e-6)


def test_gaussian_latents_stay_as_long(tmp_path):
    keys = jax.random.split(jax.random.key(0))
    start, end = (jax.random.normal(key, (4, 8, 8, 1)) for key in keys)
    walk = np.asarray(latent_walk.spherical(start, end, 9))
    lengths = np.sqrt(np.square(walk).sum((2, 3, 4)))
    assert walk.shape == (9, 4, 8, 8, 1) and abs(lengths / 8 - 1).max() < 0.25
    np.testing.assert_allclose(walk[0], start, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(walk[-1], end, rtol=1e-5, atol=1e-6)
    run = types.SimpleNamespace(workdir=tmp_path, train_source=types.SimpleNamespace(class_names=("zero", "one")))
    latent_walk.write_interpolation(run, np.array([0, 1, 0, 1]), np.clip(walk, -1, 1))
    with Image.open(tmp_path / latent_walk.PICTURE) as picture:
        assert picture.width > 2 * picture.height
