"""The classifier learns the digits, does so twice alike, and looks at images in the way that it says."""

import jax
import numpy as np
import pytest

from diffusion_jax.metrics import classifier as classifiers
from diffusion_jax.metrics import pixels
from tests.metrics.digits import TEST, TRAIN


@pytest.fixture(scope="module")
def classifier():
    return classifiers.train_classifier(*TRAIN, num_classes=10)


def test_reads_the_digits(classifier):
    assert classifier.accuracy(*TEST) >= 0.97


def test_accuracy_is_the_share_read_as_their_label(classifier):
    images, labels = TEST
    wrong = (labels + 1) % 10
    half = np.where(np.arange(len(labels)) % 2, labels, wrong)
    assert classifier.accuracy(images, wrong) < 0.03
    assert classifier.accuracy(images, half) == pytest.approx(0.5, abs=0.03)


def test_same_seed_same_classifier_another_seed_another():
    def train(seed):
        return classifiers.train_classifier(*TRAIN, num_classes=10, seed=seed, steps=20)

    first, again, other = train(0), train(0), train(1)
    assert jax.tree.all(jax.tree.map(np.array_equal, first.params, again.params))
    assert not np.array_equal(first.features(TEST[0]), other.features(TEST[0]))


def test_features_are_those_of_each_image_alone(classifier):
    images = np.concatenate([TRAIN[0], TEST[0]])
    features = classifier.features(images)
    assert features.shape == (len(images), classifiers.FEATURES)
    np.testing.assert_allclose(classifier.features(images[700:703]), features[700:703], atol=1e-5)
    np.testing.assert_array_equal(classifier.classify(images), classifier.logits(images).argmax(1))


@pytest.mark.parametrize("shape", [(28, 28, 1), (40, 24, 3)])
def test_other_sizes_train_too(shape):
    """Black and white images, told apart after a few steps (the second shape has a side that is averaged down)."""
    labels = np.arange(64) % 2
    images = np.broadcast_to(labels[:, None, None, None] * 255, (64, *shape)).astype(np.uint8)
    classifier = classifiers.train_classifier(images, labels, 2, steps=12, batch_size=16)
    assert classifier.accuracy(images, labels) == 1.0


def test_shifts_move_images_by_their_offset():
    image = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    unmoved, down_left = classifiers._shifted(np.repeat(image, 2, 0), np.array([[1, 1], [0, 2]]), 1)
    np.testing.assert_array_equal(unmoved, image[0])
    np.testing.assert_array_equal(down_left[1:, :3], image[0, :3, 1:])
    np.testing.assert_array_equal(down_left[0, :3], image[0, 0, 1:])


def test_average_down():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, size=(300, 12, 8, 3), dtype=np.uint8)
    blocks = images.reshape(300, 4, 3, 4, 2, 3).mean((2, 4))
    np.testing.assert_allclose(pixels.average_down(images, 4), blocks, rtol=1e-5)
    np.testing.assert_array_equal(pixels.average_down(images, 12), images)
    # 3 to 2 pixels: each new one covers one and a half old ones.
    row = np.array([0, 30, 90], np.uint8).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(pixels.average_down(row, 2).ravel(), [10, 70], rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classifiers.train_classifier(np.zeros((4, 8, 8, 1)), np.zeros(4, int), 2), "must be uint8"),
        (lambda: classifiers.train_classifier(TRAIN[0], TRAIN[1], 9), "labels must be from 0 to 8, got 0 to 9"),
        (lambda: classifiers.train_classifier(TRAIN[0], TRAIN[1][:5], 10), "one for each image"),
        (lambda: classifiers.train_classifier(*TRAIN, 10, steps=0), "steps and batch_size must be at least 1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_images_of_another_size_are_refused(classifier):
    with pytest.raises(ValueError, match=r"reads images \(8, 8, 1\), got \(16, 16, 1\)"):
        classifier.logits(np.zeros((2, 16, 16, 1), np.uint8))
