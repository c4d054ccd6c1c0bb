"""Kernel distances: squared maximum mean discrepancies between two sets of features, on the host in float64."""

from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.metrics.checks import Float64, checked_pair

# torch-fidelity draws its kernel-distance subsets from this state; the same default makes the numbers
# comparable.
_TORCH_FIDELITY_SEED = 2020
# Rows of a block of kernel values, so that N x N of them are never in memory.
_BLOCK = 2048


def kernel_distance(
    f1: ArrayLike, f2: ArrayLike, subsets: int = 100, subset_size: int = 1000, key: jax.Array | None = None
) -> tuple[float, float]:
    """Kernel distance (squared MMD) of f1 [N1, d] and f2 [N2, d]: mean and deviation over random subsets.

    Unbiased estimate with the cubic kernel k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, section 4), so
    small negative values are legal. Each subset takes `subset_size` rows of each side without replacement;
    the deviation (divisor `subsets`) is the spread over overlapping subsets, not a standard error, which
    `kernel_distance_error` gives. `key`
    (jax.random.key) chooses the subsets; None draws those that torch-fidelity draws. Raises ValueError for
    shapes that do not fit or a subset larger than a side.
    """
    x, y = checked_pair(f1, f2, "f1", "f2", minimum=2)
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, got {subsets}")
    if not 2 <= subset_size <= min(len(x), len(y)):
        raise ValueError(f"subset_size must be from 2 to {min(len(x), len(y))} (the smaller side), got {subset_size}")
    generator: Any
    if key is None:
        generator = np.random.RandomState(_TORCH_FIDELITY_SEED)
    else:
        generator = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    values = [
        _squared_mmd(
            x[generator.choice(len(x), subset_size, replace=False)],
            y[generator.choice(len(y), subset_size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(values)), float(np.std(values))


def kernel_distance_error(f1: ArrayLike, f2: ArrayLike) -> tuple[float, float]:
    """Kernel distance of all of f1 [N1, d] and f2 [N2, d], and its standard error: two numbers.

    The unbiased estimate of :func:`kernel_distance` without subsets; the error is the jackknife's (each image of each
    side left out in turn, Arvesen 1969), which row sums of the kernel matrices give in closed form. Takes N1 N2 d
    multiply-adds; never more than a block of the matrices is in memory. Raises ValueError for fewer than three rows.
    """
    x, y = checked_pair(f1, f2, "f1", "f2", minimum=3)
    n, m = len(x), len(y)
    xx, yy = _row_sums(x, x)[0] - _cubic_diagonal(x), _row_sums(y, y)[0] - _cubic_diagonal(y)
    xy, yx = _row_sums(x, y)

    def estimate(xx: Float64, yy: Float64, xy: Float64, n: int, m: int) -> Float64:
        return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2.0 * xy / (n * m)

    value = estimate(xx.sum(), yy.sum(), xy.sum(), n, m)
    # Without row i the sum over pairs loses the row and the column.
    without_x = estimate(xx.sum() - 2 * xx, yy.sum(), xy.sum() - xy, n - 1, m)
    without_y = estimate(xx.sum(), yy.sum() - 2 * yy, xy.sum() - yx, n, m - 1)
    variance = sum((len(v) - 1) * np.var(v) for v in (without_x, without_y))
    return float(value), float(np.sqrt(variance))


def _row_sums(x: Float64, y: Float64) -> tuple[Float64, Float64]:
    """Sums [len(x)] over y and [len(y)] over x of the kernel values of all pairs."""
    rows, columns = np.zeros(len(x)), np.zeros(len(y))
    for i in range(0, len(x), _BLOCK):
        for j in range(0, len(y), _BLOCK):
            values = _cubic(x[i : i + _BLOCK], y[j : j + _BLOCK])
            rows[i : i + _BLOCK] += values.sum(axis=1)
            columns[j : j + _BLOCK] += values.sum(axis=0)
    return rows, columns


def _cubic(x: Float64, y: Float64) -> Float64:
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def _cubic_diagonal(x: Float64) -> Float64:
    return (np.square(x).sum(axis=1) / x.shape[1] + 1.0) ** 3


def _squared_mmd(x: Float64, y: Float64) -> float:
    def mean_off_diagonal(gram: Float64) -> float:
        return (gram.sum() - np.trace(gram)) / (len(gram) * (len(gram) - 1))

    return mean_off_diagonal(_cubic(x, x)) + mean_off_diagonal(_cubic(y, y)) - 2.0 * _cubic(x, y).mean()
