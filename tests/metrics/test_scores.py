"""The scores see what they should: wrong classes, worse images, and samples compared in equal numbers."""

import json

import numpy as np
import pytest

from diffusion_jax import metrics
from diffusion_jax.metrics import scores
from tests.metrics.digits import TEST, TRAIN

PROTOCOL = {"dataset": "digits", "quantisation": "half_up"}


@pytest.fixture(scope="module")
def classifier():
    return metrics.train_classifier(*TRAIN, num_classes=10, steps=300)


def noisy(images, std):
    noise = np.random.default_rng(0).normal(scale=std, size=images.shape)
    return np.clip(images + noise, 0, 255).astype(np.uint8)


def test_real_images_score_like_real_images(classifier):
    images, labels = TRAIN[0][::2], TRAIN[1][::2]
    result = metrics.score_generated(images, labels, TRAIN, TEST, classifier, **PROTOCOL)
    assert result["read_as_requested"] > 0.97
    assert 0.7 < result["frechet_distance_classifier_ratio"] < 1.4
    assert result["classifier_test_accuracy"] == classifier.accuracy(*TEST)
    assert json.loads(json.dumps(result)) == result


def test_shuffled_labels_are_not_read_as_requested(classifier):
    images, labels = TEST
    shuffled = np.random.default_rng(0).permutation(labels)
    result = metrics.score_generated(images, shuffled, TRAIN, TEST, classifier, **PROTOCOL)
    assert result["read_as_requested"] == pytest.approx(0.1, abs=0.06)


def test_shares_per_class_are_those_of_the_class_asked_for(classifier):
    """Sixes where threes were asked for: only the share of the three falls."""
    images, labels = TEST
    images = images.copy()
    images[labels == 3] = images[np.flatnonzero(labels == 6)[0]]
    names = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    result = metrics.score_generated(images, labels, TRAIN, TEST, classifier, class_names=names, **PROTOCOL)
    shares = result["read_as_requested_per_class"]
    assert list(shares) == names
    assert shares.pop("three") == 0.0
    assert min(shares.values()) > 0.85


def test_worse_images_score_worse(classifier):
    images, labels = TRAIN[0][:500], TRAIN[1][:500]
    results = [
        metrics.score_generated(noisy(images, std), labels, TRAIN, TEST, classifier, **PROTOCOL) for std in (0, 40, 90)
    ]
    ratios = [result["frechet_distance_classifier_ratio"] for result in results]
    assert ratios[0] < 1.5 and 1.5 * ratios[0] < ratios[1] and 1.5 * ratios[1] < ratios[2]


def test_value_is_the_frechet_distance_to_the_test_images(classifier):
    images, labels = noisy(TRAIN[0][:300], 30), TRAIN[1][:300]
    result = metrics.score_generated(images, labels, TRAIN, TEST, classifier, **PROTOCOL)
    features = [metrics.moments(classifier.features(array)) for array in (images, TEST[0])]
    assert result["frechet_distance_classifier"] == pytest.approx(metrics.frechet_distance(*features[0], *features[1]))


def test_unconditional_images_have_no_shares(classifier):
    result = metrics.score_generated(TRAIN[0][:200], None, TRAIN, TEST, classifier, **PROTOCOL)
    assert "read_as_requested" not in result
    assert 0.5 < result["frechet_distance_classifier_ratio"] < 2


def test_both_left_sides_have_as_many_images_of_each_class():
    requested = np.array([0] * 5 + [1] * 2)
    train_labels = np.array([0, 1, 0, 1, 1, 0])
    compared, subsets = scores._matched(len(requested), requested, len(train_labels), train_labels, seed=0)
    assert compared.tolist() == [0, 1, 2, 5, 6]
    subsets = list(subsets)
    assert len(subsets) == scores.BASELINE_DRAWS
    for subset in subsets:
        assert len(set(subset.tolist())) == len(compared)
        assert sorted(train_labels[subset]) == [0, 0, 0, 1, 1]


def test_pixel_distance_of_large_colour_images():
    """Images enlarged by repeating pixels average back to the same 8x8, so their distance is that of the originals."""

    def enlarged(images):
        return images.repeat(3, 1).repeat(3, 2).repeat(3, 3)

    small = metrics.score_generated_pixels(noisy(TRAIN[0][:200], 30), TRAIN[0], TEST[0], **PROTOCOL)
    large = metrics.score_generated_pixels(
        enlarged(noisy(TRAIN[0][:200], 30)), enlarged(TRAIN[0]), enlarged(TEST[0]), **PROTOCOL
    )
    # Three equal channels: three times every squared length.
    assert large["frechet_distance_pixels"] == pytest.approx(3 * small["frechet_distance_pixels"], rel=1e-4)
    assert large["frechet_distance_pixels_ratio"] == pytest.approx(small["frechet_distance_pixels_ratio"], rel=1e-4)
    assert small["frechet_distance_pixels_ratio"] > 1.2


def test_bad_requests_are_named(classifier):
    with pytest.raises(ValueError, match=r"requested must be integers \[20\]"):
        metrics.score_generated(TEST[0][:20], TEST[1][:19], TRAIN, TEST, classifier, **PROTOCOL)
    with pytest.raises(ValueError, match="requested must be from 0 to 9, got 10 to 10"):
        metrics.score_generated(TEST[0][:20], np.full(20, 10), TRAIN, TEST, classifier, **PROTOCOL)
