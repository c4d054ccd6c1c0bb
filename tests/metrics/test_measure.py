"""What a protocol changes in the numbers, and what they are called."""

import numpy as np
import pytest

from diffusion_jax import metrics
from diffusion_jax.metrics import distances, measure, protocols
from diffusion_jax.metrics.measure import Side
from tests.metrics import toy

RANDOM = np.random.default_rng(0)
REAL, FAKE = RANDOM.normal(size=(60, 5)), 0.3 + RANDOM.normal(size=(50, 5))
LOGITS = 2 * RANDOM.normal(size=(50, 7))


def side(rows, **more):
    return Side(distances.Gaussian(*metrics.moments(rows)), rows=rows, num_images=len(rows), **more)


def score(*wanted, protocol="tf", **options):
    generated = side(FAKE, logits=LOGITS)
    return measure.score(wanted, generated, side(REAL), protocols.get(protocol), **options)


def test_inception_score_is_split_and_shuffled_as_the_protocol_says():
    order = np.random.RandomState(2020).permutation(50)
    assert score("is")["inception_score"] == metrics.inception_score(LOGITS)[0]
    assert score("is", protocol="torch-fidelity")["inception_score"] == metrics.inception_score(LOGITS[order])[0]
    assert score("is", protocol="adm")["inception_score"] == metrics.inception_score(LOGITS, splits=1)[0]
    adm = protocols.get("adm")
    assert [adm.score_splits(n) for n in (5000, 5001, 50_000)] == [1, 2, 10]


def test_inception_scores_standard_error_is_that_of_the_mean_of_its_splits():
    found = score("is")
    splits = [metrics.inception_score(part, 1)[0] for part in np.split(LOGITS, 10)]
    assert found["inception_score_standard_error"] == pytest.approx(np.std(splits, ddof=1) / np.sqrt(10))


def test_the_divisor_is_the_protocols():
    extractor = toy.extractor()
    extraction = measure.extraction_for(["fid"], extractor, is_generated=False)
    extraction.add(RANDOM.integers(0, 256, (4, 3, 3, 3), np.uint8))
    usual, stylegan = (measure.side_of(extraction, protocols.get(name)) for name in ("tf", "stylegan3"))
    np.testing.assert_allclose(stylegan.features.covariance, 0.75 * usual.features.covariance)
    np.testing.assert_allclose(stylegan.spatial.covariance, 0.75 * usual.spatial.covariance)


def test_adm_rounds_distances_to_float16():
    exact, rounded = score("prc"), score("prc", protocol="adm")
    assert rounded["precision"] == metrics.precision_recall(REAL, FAKE, precision="float16")[0]
    assert exact["precision"] == metrics.precision_recall(REAL, FAKE)[0]


def test_intervals_can_be_left_out():
    assert set(score("fid", "kid", intervals=False)) == {"fid", "kid", "kid_std", "kid_subset_size"}
    assert {"fid_interval_95", "kid_standard_error"} <= set(score("fid", "kid"))


def test_names_say_whose_features_they_are():
    names = {
        "inception-2015-12-05": ("fid", "kid", "precision"),
        "dinov2-vitl14": ("fd_dinov2", "kernel_distance_dinov2_vitl14", "precision_dinov2_vitl14"),
        "dinov2-vits14": (
            "frechet_distance_dinov2_vits14",
            "kernel_distance_dinov2_vits14",
            "precision_dinov2_vits14",
        ),
        "efficientnet-lite0": (
            "frechet_distance_efficientnet_lite0",
            "kernel_distance_efficientnet_lite0",
            "precision_efficientnet_lite0",
        ),
    }
    for extractor, expected in names.items():
        found = measure.Names(extractor)
        assert (found.main("fid"), found.main("kid"), found.main("prc")) == expected
        protocol = protocols.get("tf") if extractor == protocols.INCEPTION else protocols.of_features(extractor)
        result = measure.score(["fid", "kid", "prc"], side(FAKE), side(REAL), protocol)
        assert set(expected) <= set(result)
        assert any(key == "fid" for key in result) == (extractor == protocols.INCEPTION)


def test_cmmd_is_of_one_network():
    for extractor, key in (("clip-vitl14-336", "cmmd"), ("clip-vitb32", "cmmd_clip_vitb32")):
        found = measure.score(["cmmd"], side(FAKE), side(REAL), protocols.of_features(extractor))
        assert found == {key: metrics.clip_mmd(REAL, FAKE)}
        assert measure.Names(extractor).main("cmmd") == key


def test_which_way_is_better():
    higher = {key for key in score("fid", "fid-infinity", "is", "kid", "prc", "dc") if measure.is_higher_better(key)}
    means = {"inception_score", "inception_score_std", "inception_score_standard_error"}
    assert higher - means == {"precision", "recall", "density", "coverage"}
    assert measure.is_higher_better("inception_score")


def test_only_what_a_metric_needs_is_kept():
    extractor = toy.extractor()
    for wanted, is_generated, intervals, kept in (
        (["fid"], False, True, ()),
        (["fid"], True, False, ()),
        (["fid"], True, True, ("features",)),
        (["kid"], False, False, ("features",)),
        (["is"], True, False, ("logits_unbiased",)),
    ):
        extraction = measure.extraction_for(wanted, extractor, is_generated=is_generated, intervals=intervals)
        assert extraction.keep == kept


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure.score(["fid"], side(FAKE), None, protocols.get("tf")), "give --reference"),
        (lambda: measure.score(["kid"], side(FAKE), Side(None), protocols.get("tf")), "must hold images"),
        (lambda: score("sfid"), "needs mu_s and sigma_s"),
        (
            lambda: measure.score(["fid"], side(FAKE), side(REAL[:, :3]), protocols.get("tf")),
            "has 3 features and --generated 5",
        ),
        (lambda: protocols.get("fid"), "protocol 'fid' is unknown; it can be adm, tf"),
    ],
)
def test_what_is_missing_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
