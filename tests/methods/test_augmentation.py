"""EDM's augmentation: against its released code, and against what can be said of a transform without it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.methods import warp
from diffusion_jax.methods.augmentation import NUM_LABELS, Augmentation, Transform
from tests import golden

KEYS = jax.random.split(jax.random.key(0), 2000)


def smooth(height=16, width=16):
    """An image without the frequencies that a resampling filter has to damp."""
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    channels = [np.sin(2 * x + y), np.cos(2 * y - x), 0.5 * x * y]
    return jnp.asarray(np.stack(channels, -1), jnp.float32)


def transform(**fields):
    values = {name: jnp.zeros(2 if name == "translation" else ()) for name in Transform._fields}
    return Transform(**values | {name: jnp.asarray(value, jnp.float32) for name, value in fields.items()})


def test_images_and_labels_are_edms():
    """Eight images, each with a transform that the released code drew (at probability 0.5)."""
    reference = golden.load("edm-augmentation")
    transforms = Transform(*(reference[name] for name in Transform._fields))
    labels = jax.vmap(Transform.labels)(transforms)
    np.testing.assert_allclose(labels, reference["labels"], atol=1e-6)
    images = jax.jit(jax.vmap(Transform.apply))(transforms, reference["images"])
    np.testing.assert_allclose(images, reference["output"], atol=1e-5)


def test_probability_0_changes_nothing_and_says_so():
    image = jax.random.normal(jax.random.key(1), (8, 8, 3))
    augmented, labels = jax.vmap(Augmentation(0.0), (0, None))(KEYS[:64], image)
    np.testing.assert_array_equal(augmented, jnp.broadcast_to(image, augmented.shape))
    np.testing.assert_array_equal(labels, np.zeros((64, NUM_LABELS)))


def test_flips_are_exact():
    image = jax.random.normal(jax.random.key(1), (6, 8, 2))
    np.testing.assert_array_equal(transform(flip_x=1).apply(image), image[:, ::-1])
    np.testing.assert_array_equal(transform(flip_y=1).apply(image), image[::-1])
    np.testing.assert_array_equal(transform(flip_x=1, flip_y=1).apply(image), image[::-1, ::-1])


def test_whole_pixels_are_moved_exactly_and_the_border_is_a_mirror():
    image = jax.random.normal(jax.random.key(1), (12, 16, 3))
    moved = transform(translation=(3 / 16 / 0.125, -2 / 12 / 0.125)).apply(image)  # right 3, up 2
    expected = np.pad(image, ((0, 2), (3, 0), (0, 0)), mode="reflect")[2:, :16]
    np.testing.assert_allclose(moved, expected, atol=1e-5)


def test_no_motion_survives_the_filters():
    """What `apply` skips: enlarged and shrunk again, an image is itself."""
    image = jax.random.normal(jax.random.key(1), (9, 12, 2))
    np.testing.assert_allclose(warp.warp(image, jnp.eye(2), jnp.zeros(2)), image, atol=1e-5)


def test_rotation_is_from_x_towards_y():
    image = smooth()
    turned = transform(rotation=np.pi / 2).apply(image)
    # What lay on the x axis, to the right, is on the y axis; the released code turns the image that way.
    np.testing.assert_allclose(turned, jnp.rot90(image, 1), atol=0.05)
    assert np.abs(turned - jnp.rot90(image, -1)).max() > 0.5


@pytest.mark.parametrize("axis", [0.0, np.pi / 2])
def test_scales_are_powers_of_two(axis):
    """2^(0.2 * 5) = 2: the middle half fills the image, in one direction or both."""
    image = smooth(32, 32)
    both = transform(scale=5.0).apply(image)
    # Output pixel i shows place (i - 15.5) / 2 + 15.5; the mean of the four in the middle is the middle.
    np.testing.assert_allclose(both[14:18, 14:18].mean((0, 1)), image[15:17, 15:17].mean((0, 1)), atol=0.01)
    np.testing.assert_allclose((both[0, 0] + both[0, 1] + both[1, 0] + both[1, 1]) / 4, image[8, 8], atol=0.02)
    stretched = transform(anisotropy=5.0, axis=axis).apply(image)
    stretched = stretched if axis == 0 else jnp.swapaxes(stretched, 0, 1)
    image = image if axis == 0 else jnp.swapaxes(image, 0, 1)
    # Along x twice as wide; across it half as high, so that rows 5 from the middle are 10 from it in the image.
    np.testing.assert_allclose(stretched[15:17, :2].mean((0, 1)), image[15:17, 8].mean(0), atol=0.02)
    np.testing.assert_allclose(stretched[20:22, 15:17].mean((0, 1)), image[25:27, 15:17].mean((0, 1)), atol=0.02)


def test_shrinking_does_not_alias():
    """The finest stripes, at half the size, are grey; taken every second pixel they would be white."""
    stripes = jnp.tile(jnp.array([1.0, -1.0]), 16)[None, :, None] * jnp.ones((32, 1, 1))
    shrunk = transform(scale=-5.0).apply(stripes)
    assert np.abs(shrunk[12:20, 12:20]).max() < 0.15


@pytest.mark.parametrize("probability", [0.12, 0.5])
def test_each_transform_has_its_probability(probability):
    labels = jax.vmap(lambda key: Augmentation(probability).draw(key).labels())(KEYS)
    active = np.asarray(labels != 0).mean(0)
    # Half of the images are mirrored whatever the probability; a flip that was drawn is none in half of the cases.
    expected = [0.5, probability / 2, *[probability] * 4, probability, probability, probability]
    expected[6] = probability / 2  # anisotropy along x has no sine
    np.testing.assert_allclose(active, expected, atol=0.04)
    scales = np.asarray(labels[:, 2])[np.asarray(labels[:, 2]) != 0]
    assert np.std(scales) == pytest.approx(1, abs=0.15)
    rotated = np.asarray(labels[:, 3:5])[np.asarray(labels[:, 4]) != 0]
    np.testing.assert_allclose((rotated[:, 0] + 1) ** 2 + rotated[:, 1] ** 2, 1, atol=1e-5)


def test_factors_choose_the_transforms():
    only_flips = Augmentation(0.3, flip_y=0, scale=0, rotation=0, anisotropy=0, translation=0)
    labels = jax.vmap(lambda key: only_flips.draw(key).labels())(KEYS[:200])
    assert 0.4 < labels[:, 0].mean() < 0.6 and not labels[:, 1:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 1.5}, "augmentation.probability is 1.5; it must be from 0 to 1"),
        ({"probability": 0.1, "scale": -1.0}, "augmentation.scale is -1.0; it must be at least 0"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**arguments)
