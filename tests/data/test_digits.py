import numpy as np
import pytest
from sklearn.datasets import load_digits

from diffusion_jax.data.sources.digits import load


def test_the_splits_are_the_whole_set_in_proportion():
    originals, classes = load_digits(return_X_y=True)
    train, test = load("train"), load("test")
    assert (len(train), len(test)) == (1438, 359)
    np.testing.assert_allclose(np.bincount(test.labels) / np.bincount(classes), 0.2, atol=0.004)

    def rows(images, labels):
        return sorted(map(tuple, np.c_[images.reshape(len(images), 64), labels].tolist()))

    # Undone, the bytes are the original levels: no image is lost, doubled, or has another's label.
    levels = np.concatenate([train.images, test.images]).astype(float) * 16 / 255
    assert np.abs(levels - levels.round()).max() < 0.04
    assert rows(levels.round(), np.concatenate([train.labels, test.labels])) == rows(originals, classes)


def test_levels_are_rounded_half_up():
    values = np.unique(load("train").images)
    assert len(values) == 17
    assert (values[0], values[1], values[8], values[16]) == (0, 16, 128, 255)  # 15.94, 127.5


def test_the_split_is_the_same_every_time():
    np.testing.assert_array_equal(load("test").images, load("test").images)


def test_larger_images_repeat_pixels_and_channels():
    small, large = load("test"), load("test", image_size=24, channels=3)
    assert large.image_shape == (24, 24, 3)
    for channel in range(3):
        np.testing.assert_array_equal(large.images[:, 1::3, 2::3, channel], small.images[..., 0])
    blocks = large.images.reshape(-1, 8, 3, 8, 3, 3)
    assert (blocks.max((2, 4)) == blocks.min((2, 4))).all()


@pytest.mark.parametrize("size", [1, 12])
def test_sizes_that_pixels_cannot_fill(size):
    with pytest.raises(ValueError, match=f"multiple of 8 .* got {size}"):
        load("train", image_size=size)
