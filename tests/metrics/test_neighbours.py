"""Precision, recall, density and coverage against their definitions, in blocks smaller than the sets."""

import numpy as np
import pytest

from diffusion_jax import metrics
from diffusion_jax.metrics import neighbours


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(neighbours, "ROWS", 7)
    monkeypatch.setattr(neighbours, "COLUMNS", 5)


def distances(x, y):
    return np.linalg.norm(x[:, None] - y[None], axis=-1)


def radii(x, k):
    return np.sort(distances(x, x), axis=1)[:, k]


@pytest.mark.parametrize("k", [1, 3, 6])
def test_against_the_whole_matrix(small_blocks, k):
    random = np.random.default_rng(k)
    real, generated = 100 + random.normal(size=(23, 3)), 101.5 + 1.2 * random.normal(size=(31, 3))
    between = distances(generated, real)
    precision, recall = metrics.precision_recall(real, generated, k)
    assert precision == (between <= radii(real, k)).any(axis=1).mean()
    assert recall == (radii(generated, k) >= between.T).any(axis=1).mean()
    density, coverage = metrics.density_coverage(real, generated, k)
    inside = between < radii(real, k)
    assert density == pytest.approx(inside.sum() / k / len(generated))
    assert coverage == inside.any(axis=0).mean()
    assert 0 < precision < 1
    assert density != precision


def test_float16_distances_are_rounded_as_in_the_adm_evaluator(small_blocks):
    """|x|^2 - 2 x.y + |y|^2, every result in float16."""
    random = np.random.default_rng(0)
    x, y = np.abs(random.normal(size=(2, 12, 40))).astype(np.float16)
    whole = np.zeros((12, 12))
    for rows, columns, values in neighbours.squared_distances(x.astype(float), y.astype(float), "float16"):
        whole[rows, columns] = values
    squares = [np.float16((v * v).astype(np.float32).sum(1)) for v in (x, y)]
    products = np.float16(x.astype(np.float32) @ y.astype(np.float32).T)
    expected = np.maximum(squares[0][:, None] - np.float16(2) * products + squares[1], 0)
    np.testing.assert_array_equal(whole, expected)
    exact = distances(x.astype(float), y.astype(float)) ** 2
    assert 0 < np.abs(whole - exact).max() < 0.2


def test_float16_overflow_is_said():
    with pytest.raises(ValueError, match="overflow float16"):
        metrics.precision_recall(np.full((5, 3), 300.0), np.zeros((5, 3)), precision="float16")
