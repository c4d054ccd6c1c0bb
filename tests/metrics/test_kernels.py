"""Kernel distances and CMMD against their definitions, written out."""

import numpy as np
import pytest

from diffusion_jax import metrics
from diffusion_jax.metrics import kernels


def test_standard_error_is_the_jackknife(monkeypatch):
    """Against leaving out each image in turn; in blocks smaller than the sets."""
    monkeypatch.setattr(kernels, "_BLOCK", 5)
    random = np.random.default_rng(0)
    x, y = random.normal(size=(12, 4)), 0.5 + random.normal(size=(9, 4))

    def distance(x, y):
        n, m = len(x), len(y)
        xx, yy, xy = ((a @ b.T / 4 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
        return (
            (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean()
        )  # fmt: skip

    value, error = metrics.kernel_distance_error(x, y)
    assert value == pytest.approx(distance(x, y), rel=1e-12)
    without_x = [distance(np.delete(x, i, 0), y) for i in range(12)]
    without_y = [distance(x, np.delete(y, i, 0)) for i in range(9)]
    assert error**2 == pytest.approx(11 * np.var(without_x) + 8 * np.var(without_y), rel=1e-9)


def test_standard_error_is_the_spread_over_new_images():
    random = np.random.default_rng(1)
    draws = [
        metrics.kernel_distance_error(random.normal(size=(60, 3)), 0.5 + random.normal(size=(60, 3)))
        for _ in range(200)
    ]
    values, errors = np.array(draws).T
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_all_images_agree_with_one_subset_of_all():
    random = np.random.default_rng(2)
    x, y = random.normal(size=(2, 50, 3))
    expected, _ = metrics.kernel_distance(x, y, subsets=1, subset_size=50)
    assert metrics.kernel_distance_error(x, y)[0] == pytest.approx(expected, abs=1e-12)


def test_clip_mmd_is_the_published_estimate():
    """exp(-|x - y|^2 / 200) of unit vectors, diagonal included, times 1000."""
    random = np.random.default_rng(3)
    x, y = random.normal(size=(20, 6)), 0.3 + 2 * random.normal(size=(15, 6))
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))

    def kernel(u, v):
        return np.exp(-np.square(u[:, None] - v).sum(-1) / 200).mean()

    expected = 1000 * (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b))
    assert metrics.clip_mmd(x, y) == pytest.approx(expected, rel=1e-9)
    assert metrics.clip_mmd(x, 7 * x) == pytest.approx(0, abs=1e-12)


def test_clip_score():
    images, texts = np.array([[2.0, 0], [0, 3], [1, 1]]), np.array([[1.0, 0], [0, -1], [1, 0]])
    cosines = [1, 0, 0.5**0.5]  # the second is -1, which counts as nothing
    mean, error = metrics.clip_score(images, texts)
    assert mean == pytest.approx(2.5 * np.mean(cosines))
    assert error == pytest.approx(2.5 * np.std(cosines, ddof=1) / 3**0.5)
    assert metrics.clip_score(images, texts, weight=100)[0] == pytest.approx(100 * np.mean(cosines))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.clip_mmd(np.zeros((3, 2)), np.ones((3, 2))), "real has an embedding of length 0"),
        (lambda: metrics.clip_score(np.ones((3, 2)), np.ones((4, 2))), "must be pairs, got 3 and 4"),
        (lambda: metrics.kernel_distance_error(np.ones((2, 2)), np.ones((4, 2))), "N >= 3"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
