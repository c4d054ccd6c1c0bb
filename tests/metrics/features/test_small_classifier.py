"""The classifier as an extractor: the numbers of the classifier itself, with its training in the settings."""

import jax
import numpy as np
import pytest

from diffusion_jax.metrics import classifier as classifiers
from diffusion_jax.metrics import features
from tests.metrics.digits import TRAIN


@pytest.fixture(scope="module")
def digits():
    return classifiers.train_classifier(*TRAIN, num_classes=10, steps=5)


@pytest.fixture(scope="module")
def wide():
    images = np.random.default_rng(0).integers(0, 256, (16, 40, 36, 3), np.uint8)
    return images, classifiers.train_classifier(images, np.arange(16) % 2, 2, steps=2, batch_size=8)


def test_grey_digits_in_three_channels(digits):
    extractor = features.classifier_extractor(digits, "digits-classifier")
    images = TRAIN[0][:7]
    out = jax.jit(extractor.apply)(extractor.params, images.repeat(3, axis=-1))
    assert out["features"].shape == (7, extractor.feature_dim)
    np.testing.assert_allclose(out["features"], digits.features(images), atol=1e-5)
    np.testing.assert_allclose(out["logits"], digits.logits(images), atol=1e-5)
    assert extractor.settings["classifier_steps"] == 5


def test_large_images_are_averaged_down_as_in_training(wide):
    images, classifier = wide
    extractor = features.classifier_extractor(classifier, "stripes")
    np.testing.assert_allclose(
        extractor.apply(extractor.params, images)["features"], classifier.features(images), atol=1e-4
    )


def test_the_hash_is_that_of_the_weights(digits, wide):
    extractor = features.classifier_extractor(digits, "a")
    assert extractor.weights_sha256 == features.classifier_extractor(digits, "b").weights_sha256
    other = classifiers.train_classifier(*TRAIN, num_classes=10, steps=6)
    assert extractor.weights_sha256 != features.classifier_extractor(other, "a").weights_sha256


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((1, 9, 8, 3), np.uint8), "reads images of 8x8, got 9x8"),
        (np.zeros((1, 8, 8, 1), np.uint8), r"uint8 \[B, H, W, 3\], got uint8 \(1, 8, 8, 1\)"),
        (np.zeros((1, 8, 8, 3), np.float32), "got float32"),
    ],
)
def test_other_images_are_refused(digits, images, says):
    extractor = features.classifier_extractor(digits, "digits-classifier")
    with pytest.raises(ValueError, match=says):
        extractor.apply(extractor.params, images)


def test_load_trains_it_and_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"features .resnet. are unknown; they could be .*digits-classifier"):
        features.load("resnet")
    with pytest.raises(ValueError, match="neither weights nor fast"):
        features.load("digits-classifier", fast=True)
    extractor = features.load("digits-classifier")
    images, labels = TRAIN
    read = np.asarray(extractor.apply(extractor.params, images[:200].repeat(3, -1))["logits"]).argmax(1)
    assert (read == labels[:200]).mean() > 0.97
