"""Augmentation of the discriminator's images: closed forms of colours, what moves its strength, and that it is learnt
through."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.methods.gan.adaptive import AdaptiveAugmentation, colour_matrix

AUGMENTATION = AdaptiveAugmentation(target=0.6, speed_images=1600)
ONE = jnp.float32(1)


def test_a_third_of_a_turn_exchanges_the_colours():
    matrix = colour_matrix(3, 1.0, 2 * np.pi / 3, 1.0)
    np.testing.assert_allclose(matrix @ jnp.array([0.2, 0.5, 0.9]), [0.9, 0.2, 0.5], atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_is_scaled_alone_and_what_is_across_it_too(channels):
    matrix = np.asarray(colour_matrix(channels, -1.0, 0.7, 3.0))
    grey = np.ones(channels)
    np.testing.assert_allclose(matrix @ grey, -grey, atol=1e-6)
    for colour in np.eye(channels) - 1 / channels:
        np.testing.assert_allclose(np.linalg.norm(matrix @ colour), 3 * np.linalg.norm(colour), atol=1e-6)
        np.testing.assert_allclose(grey @ matrix @ colour, 0, atol=1e-6)
    np.testing.assert_allclose(colour_matrix(channels, 1.0, 0.0, 1.0), np.eye(channels), atol=1e-6)


def test_brightness_is_added_before_contrast_multiplies():
    only = dict.fromkeys(("inversion", "hue", "saturation"), 0.0)
    matrices, shifts = jax.vmap(lambda key: AdaptiveAugmentation(**only).colours(key, 3, ONE))(
        jax.random.split(jax.random.key(0), 2000)
    )
    contrast = np.asarray(matrices[:, 0, 0])
    np.testing.assert_allclose(matrices, contrast[:, None, None] * np.eye(3), atol=1e-6)
    np.testing.assert_allclose(np.log2(contrast).std(), 0.5, atol=0.03)
    np.testing.assert_allclose((shifts[:, 0] / contrast).std(), 0.2, atol=0.02)


def test_as_often_as_the_probability_says_and_else_not_at_all():
    images = jax.random.uniform(jax.random.key(1), (500, 8, 8, 1), minval=-1)
    keys = jax.random.split(jax.random.key(2), 500)
    only = {name: 0.0 for name in ("scale", "rotation", "anisotropy", "translation", "contrast", "inversion")}
    mirror = AdaptiveAugmentation(**only, brightness=0.0)

    def share(probability):
        seen = jax.vmap(mirror.augment, (0, 0, None))(keys, images, jnp.float32(probability))
        return np.mean(np.abs(np.asarray(seen - images)).max((1, 2, 3)) > 1e-3)

    assert share(0.0) == 0
    assert abs(share(0.5) - 0.25) < 0.07  # of the transformed ones, half are mirrored
    assert abs(share(1.0) - 0.5) < 0.07


def test_colours_alone_leave_every_pixel_where_it_is():
    still = AdaptiveAugmentation(**dict.fromkeys(("flip_x", "scale", "rotation", "anisotropy", "translation"), 0.0))
    assert not still.moves and AdaptiveAugmentation().moves
    image = jnp.arange(64.0).reshape(8, 8, 1) / 64
    seen = np.asarray(jax.jit(still.augment)(jax.random.key(3), image, ONE))[..., 0]
    steps = np.diff(seen.ravel())
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)


def test_it_is_affine_and_learnt_through():
    image, other = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    augment = jax.jit(lambda image: AdaptiveAugmentation().augment(jax.random.key(3), image, ONE))
    assert np.abs(augment(image) - image).max() > 0.1
    moved = jax.jvp(augment, (image,), (other,))[1]
    np.testing.assert_allclose(moved, augment(image + other) - augment(image), atol=1e-4)
    assert np.abs(moved).max() > 0.1


@pytest.mark.parametrize(
    ("signs", "expected"),
    [([1, 1, 1, 0.2], 0.5 + 4 * 16 / 1600), ([1, 1, 0.2, 0], 0.5 - 4 * 16 / 1600), ([1, 1, 1], 0.5)],
)
def test_every_fourth_update_moves_it_by_the_share_of_images(signs, expected):
    strength = AUGMENTATION.begin()._replace(probability=jnp.float32(0.5))
    for sign in signs:
        strength = AUGMENTATION.adapt(strength, jnp.full(16, sign))
    np.testing.assert_allclose(strength.probability, expected, atol=1e-6)
    assert int(strength.updates) == len(signs) % 4


def test_it_stays_a_probability_and_stays_without_a_target():
    strength = AUGMENTATION.begin()
    for _ in range(8):
        strength = AUGMENTATION.adapt(strength, -jnp.ones(16))
    assert strength.probability == 0
    for _ in range(4 * 30):
        strength = AUGMENTATION.adapt(strength, jnp.ones(16))
    assert strength.probability == 1
    fixed = AdaptiveAugmentation(probability=0.3)
    assert fixed.adapt(fixed.begin(), jnp.ones(16)) == fixed.begin() and not fixed.is_off
    assert AdaptiveAugmentation().is_off and not AUGMENTATION.is_off


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 1.0}, r"augmentation.target is 1.0; it must be between -1 and 1"),
        ({"probability": 1.5}, r"augmentation.probability is 1.5"),
        ({"hue": -1.0}, r"augmentation.hue is -1.0; it must be 0 or more"),
        ({"speed_images": 0}, r"augmentation.speed_images is 0; it must be 1 or more"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveAugmentation(**options)
