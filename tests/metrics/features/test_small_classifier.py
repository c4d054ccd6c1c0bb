"""The classifier as an extractor: the numbers of the classifier itself, with its training in the settings."""

import jax
import numpy as np
import pytest

from diffusion_jax.metrics import classifier as classifiers
from diffusion_jax.metrics import features
from diffusion_jax.metrics.features import small_classifier
from tests.metrics.digits import TRAIN


def untrained(images, num_classes, seed=0):
    """A classifier of such images, for whose numbers no training is needed."""
    network = classifiers.ClassifierNetwork(num_classes)
    inputs = classifiers._network_input(images[:1])
    params = classifiers._initial_params(network, inputs, np.random.default_rng(seed))
    return classifiers.Classifier(network, params, images.shape[1:], {"steps": 0, "seed": seed})


@pytest.fixture(scope="module")
def digits():
    return untrained(TRAIN[0], 10)


WIDE = np.random.default_rng(0).integers(0, 256, (16, 40, 36, 3), np.uint8)


def test_grey_digits_in_three_channels(digits):
    extractor = features.classifier_extractor(digits, "digits-classifier")
    images = TRAIN[0][:7]
    out = jax.jit(extractor.apply)(extractor.params, images.repeat(3, axis=-1))
    assert out["features"].shape == (7, extractor.feature_dim)
    np.testing.assert_allclose(out["features"], digits.features(images), atol=1e-5)
    np.testing.assert_allclose(out["logits"], digits.logits(images), atol=1e-5)
    assert extractor.settings["classifier_steps"] == 0


def test_large_images_are_averaged_down_as_in_training():
    classifier = untrained(WIDE, 2)
    extractor = features.classifier_extractor(classifier, "stripes")
    outputs = jax.jit(extractor.apply)(extractor.params, WIDE)
    np.testing.assert_allclose(outputs["features"], classifier.features(WIDE), atol=1e-4)


def test_the_hash_is_that_of_the_weights(digits):
    extractor = features.classifier_extractor(digits, "a")
    assert extractor.weights_sha256 == features.classifier_extractor(untrained(TRAIN[0], 10), "b").weights_sha256
    assert extractor.weights_sha256 != features.classifier_extractor(untrained(TRAIN[0], 10, 1), "a").weights_sha256


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


def test_load_trains_it_on_the_digits(monkeypatch, digits):
    def train(images, labels, num_classes):
        assert images.shape == (1797, 8, 8, 1) and images.dtype == np.uint8 and images.max() == 255
        assert (len(labels), num_classes) == (1797, 10)
        return digits

    monkeypatch.setattr(small_classifier, "train_classifier", train)
    extractor = features.load("digits-classifier")
    assert extractor.name == "digits-classifier" and extractor.params is digits.params


def test_load_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"features .resnet. are unknown; they could be .*digits-classifier"):
        features.load("resnet")
    with pytest.raises(ValueError, match="neither weights nor fast"):
        features.load("digits-classifier", fast=True)
