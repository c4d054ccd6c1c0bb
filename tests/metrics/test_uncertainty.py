"""Intervals hold what they promise, and FID-infinity takes the bias away."""

import numpy as np
import pytest

from diffusion_jax import metrics
from diffusion_jax.metrics import distances, uncertainty


def draw(random, count):
    return random.normal(size=(count, 8)) * np.linspace(0.5, 1.5, 8)


REFERENCE = distances.Gaussian(np.full(8, 0.1), np.diag(np.linspace(0.6, 1.4, 8) ** 2))
TRUTH = metrics.frechet_distance(np.zeros(8), np.diag(np.linspace(0.5, 1.5, 8) ** 2), *vars(REFERENCE).values())


def test_merged_parts_are_the_moments_of_all():
    features = draw(np.random.default_rng(0), 53)
    whole = uncertainty.merged(uncertainty.parts(features, 7)).gaussian()
    mean, covariance = metrics.moments(features)
    np.testing.assert_allclose(whole.mean, mean, atol=1e-14)
    np.testing.assert_allclose(whole.covariance, covariance, atol=1e-14)


def test_standard_error_is_the_spread_over_new_images():
    random = np.random.default_rng(1)
    values, errors = [], []
    for _ in range(100):
        parts = uncertainty.parts(draw(random, 400), 10)
        values.append(uncertainty.merged(parts).gaussian().distance(REFERENCE))
        errors.append(uncertainty.frechet_interval(parts, REFERENCE).standard_error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.2)


def test_interval_is_about_the_value_of_all_images():
    parts = uncertainty.parts(draw(np.random.default_rng(2), 400), 5)
    value = uncertainty.merged(parts).gaussian().distance(REFERENCE)
    interval = uncertainty.frechet_interval(parts, REFERENCE)
    assert (interval.low + interval.high) / 2 == pytest.approx(value)
    assert interval.high - value == pytest.approx(2.776 * interval.standard_error)  # t with 4 degrees of freedom


def test_infinity_removes_the_bias_of_few_images():
    random = np.random.default_rng(3)
    plain, infinite = [], []
    for _ in range(100):
        features = draw(random, 200)
        plain.append(distances.Gaussian(*metrics.moments(features)).distance(REFERENCE))
        infinite.append(uncertainty.frechet_infinity(features, REFERENCE))
    bias = np.mean(plain) - TRUTH
    assert bias > 5 * np.std(plain) / 10
    assert abs(np.mean(infinite) - TRUTH) < 0.3 * bias


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: uncertainty.frechet_interval(uncertainty.parts(x, 1), REFERENCE), "at least 2 groups"),
        (lambda x: uncertainty.frechet_infinity(x[:10], REFERENCE), "N >= 20"),
        (lambda x: uncertainty.frechet_infinity(x, REFERENCE, points=1), "points must be at least 2"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(draw(np.random.default_rng(4), 30))


@pytest.mark.parametrize("rank", [3, 30])
def test_the_quick_distance_is_the_distance(rank):
    """Also of singular covariances, on either side."""
    random = np.random.default_rng(5)
    first, second = (
        distances.Gaussian(random.normal(size=20), factor @ factor.T)
        for factor in (random.normal(size=(20, rank)), random.normal(size=(20, 12)))
    )
    expected = metrics.frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
    assert first.quick_distance(second) == pytest.approx(expected, rel=1e-7)
    assert second.quick_distance(first) == pytest.approx(expected, rel=1e-7)
