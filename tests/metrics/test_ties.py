"""Precision, recall, density and coverage where points are equally far: counted as by whole numbers, exactly."""

import numpy as np
import pytest

from diffusion_jax import metrics
from diffusion_jax.metrics import distances, neighbours, uncertainty


def whole_numbers(real, generated, k):
    """(precision, recall, density, coverage) of integer features, by integer arithmetic on all pairs."""
    x, y = np.asarray(real, np.int64), np.asarray(generated, np.int64)

    def apart(a, b):
        return ((a[:, None] - b) ** 2).sum(-1)

    radii_x, radii_y = (np.sort(apart(a, a), axis=1)[:, k] for a in (x, y))
    across = apart(y, x)
    inside = across < radii_x
    return (
        (across <= radii_x).any(1).mean(),
        (radii_y >= across.T).any(1).mean(),
        inside.sum() / (k * len(y)),
        inside.any(0).mean(),
    )


def computed(real, generated, k):
    return (
        *metrics.precision_recall(real, generated, k=k),
        *neighbours.density_coverage(np.asarray(real, float), np.asarray(generated, float), k=k),
    )


def test_a_point_on_the_border_is_inside():
    assert metrics.precision_recall([[0.0], [1.0], [3.0]], [[2.0], [5.0], [7.0]], k=1) == pytest.approx((2 / 3, 1))


@pytest.mark.parametrize("seed", range(200))
def test_small_whole_numbers_are_counted_exactly(seed):
    generator = np.random.default_rng(seed)
    dimensions, k = int(generator.integers(1, 4)), int(generator.integers(1, 4))
    real, generated = (generator.integers(0, 6, (generator.integers(5, 30), dimensions)) for _ in range(2))
    np.testing.assert_allclose(computed(real, generated, k), whole_numbers(real, generated, k), atol=1e-12)


def test_blocks_do_not_change_what_is_counted(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 7)
    monkeypatch.setattr(neighbours, "COLUMNS", 5)
    monkeypatch.setattr(neighbours, "_AT_ONCE", 16)
    generator = np.random.default_rng(1)
    real, generated = (generator.integers(0, 5, (40, 2)) for _ in range(2))
    np.testing.assert_allclose(computed(real, generated, 3), whole_numbers(real, generated, 3), atol=1e-12)


def test_duplicates_far_from_the_origin_are_at_distance_0():
    """Products lose the digits in which such points differ."""
    points = 1e6 + np.random.default_rng(0).normal(size=(20, 8))
    doubled = np.concatenate([points, points])
    assert (neighbours.neighbour_radii(doubled, 1) == 0).all()
    assert metrics.precision_recall(doubled, points, k=1) == (1.0, 1.0)


def test_too_few_features_are_said_by_the_metrics_names():
    with pytest.raises(ValueError, match="precision, recall, density and coverage need more than 3 features a side"):
        metrics.precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


def test_a_distance_is_not_negative():
    """The same folder twice: what rounding leaves is no distance, and an interval ends at 0."""
    features = np.random.default_rng(0).normal(size=(80, 64)) * np.linspace(0.01, 30, 64)
    gaussian = distances.gaussian(*distances.moments(features))
    assert 0 <= gaussian.distance(gaussian) < 1e-9 and 0 <= gaussian.quick_distance(gaussian) < 1e-2
    interval = uncertainty.frechet_interval(uncertainty.parts(features, 10), gaussian)
    assert 0 <= interval.low <= interval.high
