"""The distances agree with torch-fidelity's recorded values and with closed forms."""

from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_jax import metrics
from tests import golden


@pytest.fixture(scope="module")
def recorded():
    arrays = golden.load("metric-formulas")
    return (
        arrays["features1"],
        arrays["features2"],
        arrays["logits"],
        golden.config("metric-formulas", "golden.json"),
    )


def frechet(f1, f2):
    return metrics.frechet_distance(*metrics.moments(f1), *metrics.moments(f2))


def random_covariance(rng, d, rank):
    factor = rng.normal(size=(d, rank))
    return factor @ factor.T / rank


def test_frechet_distance_golden(recorded):
    f1, f2, _, values = recorded
    assert frechet(f1, f2) == pytest.approx(values["fid"]["frechet_inception_distance"], abs=1e-6)


def test_frechet_distance_golden_singular(recorded):
    # Fewer samples (40 and 50) than dimensions (64). The reference's own rounding is 1e-6 here: it takes
    # square roots of eigenvalues that are zero up to rounding.
    f1, f2, _, values = recorded
    expected = values["fid_singular_40_samples"]["frechet_inception_distance"]
    assert frechet(f1[:40], f2[:50]) == pytest.approx(expected, rel=1e-6)


def test_kernel_distance_golden(recorded):
    f1, f2, _, values = recorded
    mean, std = metrics.kernel_distance(f1[:2500], f2, subsets=1, subset_size=2500)
    assert mean == pytest.approx(values["kid_all_samples_one_subset"]["kernel_inception_distance_mean"], abs=1e-5)
    assert std == 0.0


def test_inception_score_golden(recorded):
    _, _, logits, values = recorded
    mean, std = metrics.inception_score(logits, splits=10)
    assert mean == pytest.approx(values["isc"]["inception_score_mean"], abs=1e-6)
    assert std == pytest.approx(values["isc"]["inception_score_std"], abs=1e-6)


def test_precision_recall_golden(recorded):
    f1, f2, _, values = recorded
    precision, recall = metrics.precision_recall(real=f2, generated=f1, k=3)
    assert precision == pytest.approx(values["prc"]["precision"], abs=1e-4)
    assert recall == pytest.approx(values["prc"]["recall"], abs=1e-4)


def test_moments_are_unbiased_and_float64():
    features = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    mean, covariance = metrics.moments(features)
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, features.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(covariance, np.cov(features.astype(np.float64), rowvar=False), rtol=1e-12)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), d=st.integers(1, 6))
def test_frechet_distance_of_commuting_gaussians(seed, d):
    """Covariances that share eigenvectors: the distances of the means and of the standard deviations."""
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(d, d)))[0]
    mu1, mu2 = rng.normal(size=(2, d))
    std1, std2 = rng.uniform(0, 3, size=(2, d)) * (rng.uniform(size=(2, d)) > 0.3)
    value = metrics.frechet_distance(mu1, rotation * std1**2 @ rotation.T, mu2, rotation * std2**2 @ rotation.T)
    assert value == pytest.approx(np.square(mu1 - mu2).sum() + np.square(std1 - std2).sum(), abs=1e-9)


def test_frechet_distance_of_any_gaussians():
    """tr((S1 S2)^(1/2)) against the eigenvalues of the product."""
    rng = np.random.default_rng(1)
    s1, s2 = random_covariance(rng, 5, 9), random_covariance(rng, 5, 9)
    mu1, mu2 = rng.normal(size=(2, 5))
    cross = np.sqrt(np.linalg.eigvals(s1 @ s2).real).sum()
    expected = np.square(mu1 - mu2).sum() + np.trace(s1) + np.trace(s2) - 2 * cross
    assert metrics.frechet_distance(mu1, s1, mu2, s2) == pytest.approx(expected, abs=1e-10)
    assert metrics.frechet_distance(mu2, s2, mu1, s1) == pytest.approx(expected, abs=1e-10)


def test_frechet_distance_is_zero_for_a_singular_gaussian_with_itself():
    rng = np.random.default_rng(2)
    sigma = random_covariance(rng, 50, 7)
    assert metrics.frechet_distance(np.ones(50), sigma, np.ones(50), sigma) == pytest.approx(0.0, abs=1e-10)
    zero = np.zeros((50, 50))
    assert metrics.frechet_distance(np.ones(50), sigma, np.zeros(50), zero) == pytest.approx(50 + np.trace(sigma))


def test_values_do_not_depend_on_the_order_of_the_samples():
    rng = np.random.default_rng(3)
    f1, f2 = rng.normal(size=(60, 4)), 0.3 + rng.normal(size=(50, 4))
    shuffled = rng.permutation(f1)
    assert frechet(shuffled, f2) == pytest.approx(frechet(f1, f2), abs=1e-12)
    assert metrics.precision_recall(shuffled, f2) == metrics.precision_recall(f1, f2)
    whole: dict[str, Any] = {"subsets": 1, "subset_size": 50}
    f1, shuffled = f1[:50], rng.permutation(f1[:50])
    assert metrics.kernel_distance(shuffled, f2, **whole)[0] == pytest.approx(
        metrics.kernel_distance(f1, f2, **whole)[0], abs=1e-12
    )


def test_kernel_distance_is_unbiased():
    """Of two samples of one distribution the estimate averages to zero and is sometimes negative."""
    rng = np.random.default_rng(4)
    values = [metrics.kernel_distance(*rng.normal(size=(2, 20, 3)), subsets=1, subset_size=20)[0] for _ in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))
    assert np.min(values) < 0


def test_kernel_distance_key_chooses_the_subsets():
    rng = np.random.default_rng(5)
    f1, f2 = rng.normal(size=(2, 100, 3))

    def distance(seed):
        return metrics.kernel_distance(f1, f2, subsets=3, subset_size=30, key=jax.random.key(seed))

    assert distance(0) == distance(0)
    assert distance(0) != distance(1)


def test_inception_score_closed_forms():
    # Certain of one class, all classes equally often: as many as there are classes. Uncertain of everything:
    # one.
    certain = np.where(np.eye(4, dtype=bool)[np.arange(40) % 4], 0.0, -np.inf)
    certain = np.maximum(certain, -1e6)
    assert metrics.inception_score(certain, splits=2) == pytest.approx((4.0, 0.0), abs=1e-9)
    assert metrics.inception_score(np.zeros((40, 4)), splits=2) == pytest.approx((1.0, 0.0), abs=1e-9)


def test_precision_and_recall_are_not_swapped():
    """Generated points that sit in one of two real clusters are precise and miss the other cluster."""
    rng = np.random.default_rng(6)
    left, right = rng.normal(size=(50, 2)), 100 + rng.normal(size=(50, 2))
    precision, recall = metrics.precision_recall(np.concatenate([left, right]), left[:40])
    assert precision == 1.0
    assert recall == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.moments(np.zeros((1, 3))), "features must be an array"),
        (lambda: metrics.moments(np.full((5, 3), np.nan)), "features must be finite"),
        (lambda: metrics.frechet_distance(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2)), "mu1 and sigma1"),
        (lambda: metrics.frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), "same length"),
        (
            lambda: metrics.kernel_distance(np.zeros((9, 2)), np.zeros((8, 2))),
            "subset_size must be from 2 to 8",
        ),
        (lambda: metrics.kernel_distance(np.zeros((9, 2)), np.zeros((9, 3))), "same feature dimension"),
        (lambda: metrics.inception_score(np.zeros((5, 2))), "splits must be from 1 to 5"),
        (lambda: metrics.precision_recall(np.zeros((3, 2)), np.zeros((9, 2))), "need more than 3 features a side"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
