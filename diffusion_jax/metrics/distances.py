"""Distances between two sets of feature vectors, on the host in float64.

Nothing here knows where the features come from: the same functions give FID with Inception features and the
classifier scores of `small_scores`. A value means something only beside its protocol (extractor, sample
counts, quantisation).
"""

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]

# torch-fidelity draws its kernel-distance subsets from this state; the same default makes the numbers
# comparable.
_TORCH_FIDELITY_SEED = 2020


def moments(features: ArrayLike) -> tuple[Float64, Float64]:
    """Mean [d] and unbiased covariance [d, d] (divisor N - 1) of features [N, d], both float64.

    Raises ValueError for anything but a finite [N, d] array with N >= 2.
    """
    x = _features(features, "features", minimum=2)
    mean = x.mean(axis=0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def frechet_distance(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """Squared Frechet (2-Wasserstein) distance between N(mu1, sigma1) and N(mu2, sigma2).

    |mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^(1/2))

    (Dowson & Landau 1982; Heusel et al. 2017, eq. 6.) mu [d], sigma [d, d] symmetric positive semi-definite.
    With sigma = L L^T from symmetric eigenvalues, the last trace is the sum of the singular values of L1^T
    L2: no complex numbers, no added epsilon (which would bias the value), and exact for singular covariances
    too, such as those of fewer samples than dimensions. Zero for equal arguments up to rounding. Raises
    ValueError for shapes that do not fit and for values that are not finite.
    """
    mu1, sigma1 = _gaussian(mu1, sigma1, "1")
    mu2, sigma2 = _gaussian(mu2, sigma2, "2")
    if mu1.shape != mu2.shape:
        raise ValueError(f"mu1 and mu2 must have the same length, got {len(mu1)} and {len(mu2)}")
    cross = np.linalg.svd(_factor(sigma1).T @ _factor(sigma2), compute_uv=False).sum()
    return float(np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2.0 * cross)


def kernel_distance(
    f1: ArrayLike, f2: ArrayLike, subsets: int = 100, subset_size: int = 1000, key: jax.Array | None = None
) -> tuple[float, float]:
    """Kernel distance (squared MMD) of f1 [N1, d] and f2 [N2, d]: mean and deviation over random subsets.

    Unbiased estimate with the cubic kernel k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, section 4), so
    small negative values are legal. Each subset takes `subset_size` rows of each side without replacement;
    the deviation (divisor `subsets`) is the spread over overlapping subsets, not a standard error. `key`
    (jax.random.key) chooses the subsets; None draws those that torch-fidelity draws. Raises ValueError for
    shapes that do not fit or a subset larger than a side.
    """
    x, y = _pair(f1, f2, "f1", "f2", minimum=2)
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


def inception_score(logits: ArrayLike, splits: int = 10) -> tuple[float, float]:
    """Inception score exp(E_x KL(p(y|x) || p(y))) of logits [N, K]: mean and standard deviation over splits.

    Salimans et al. 2016, section 4. Split i is the rows i N / splits to (i + 1) N / splits in the order
    given, so shuffle rows that are sorted by class; the published protocol uses Inception's logits without
    their bias. Raises ValueError for fewer rows than splits.
    """
    values = _features(logits, "logits", minimum=1)
    if not 1 <= splits <= len(values):
        raise ValueError(f"splits must be from 1 to {len(values)} (the number of rows), got {splits}")
    log_p = values - values.max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    bounds = [i * len(log_p) // splits for i in range(splits + 1)]
    scores = []
    for start, stop in itertools.pairwise(bounds):
        rows = log_p[start:stop]
        p = np.exp(rows)
        # A class that no image has any probability for adds 0 log 0 = 0.
        log_marginal = np.log(np.maximum(p.mean(axis=0), np.finfo(np.float64).tiny))
        scores.append(np.exp((p * (rows - log_marginal)).sum(axis=1).mean()))
    return float(np.mean(scores)), float(np.std(scores))


def precision_recall(real: ArrayLike, generated: ArrayLike, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of real [N, d] and generated [M, d] features.

    Kynkaanniemi et al. 2019, eq. 1-2. A set's manifold is the union of balls around its points, each reaching
    its k-th nearest neighbour. Precision is the share of generated points inside the real manifold, recall
    the share of real points inside the generated one. Distances are Euclidean in float64 (the ADM evaluator
    uses float16, which moves both values by up to a few hundredths). Raises ValueError for a side of k points
    or fewer.
    """
    x, y = _pair(real, generated, "real", "generated", minimum=2)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(f"k must be from 1 to {min(len(x), len(y)) - 1} (one less than the smaller side), got {k}")
    return _share_inside(y, x, _neighbour_radii(x, k)), _share_inside(x, y, _neighbour_radii(y, k))


def _squared_mmd(x: Float64, y: Float64) -> float:
    def kernel(a: Float64, b: Float64) -> Float64:
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    def mean_off_diagonal(gram: Float64) -> float:
        return (gram.sum() - np.trace(gram)) / (len(gram) * (len(gram) - 1))

    return mean_off_diagonal(kernel(x, x)) + mean_off_diagonal(kernel(y, y)) - 2.0 * kernel(x, y).mean()


def _factor(sigma: Float64) -> Float64:
    """L [d, rank] with sigma = L L^T."""
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2.0)
    # Eigenvalues below this are rounding error of a singular matrix; their square roots would not be small.
    kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
    return vectors[:, kept] * np.sqrt(values[kept])


def _neighbour_radii(points: Float64, k: int) -> Float64:
    """Squared distance of each point to its k-th nearest neighbour, itself not counted."""
    # The point itself is at distance 0, so the k-th neighbour is element k of the sorted distances.
    return np.concatenate([np.partition(block, k, axis=1)[:, k] for block in _squared_distances(points, points)])


def _share_inside(points: Float64, centres: Float64, squared_radii: Float64) -> float:
    inside = [(block <= squared_radii).any(axis=1) for block in _squared_distances(points, centres)]
    return float(np.concatenate(inside).mean())


def _squared_distances(x: Float64, y: Float64, block: int = 1024) -> Iterator[Float64]:
    """Squared distances in blocks of rows [<= block, len(y)], so that the full matrix is never in memory."""
    y_norms = np.square(y).sum(axis=1)
    for start in range(0, len(x), block):
        rows = x[start : start + block]
        yield np.maximum(np.square(rows).sum(axis=1)[:, None] - 2.0 * rows @ y.T + y_norms, 0.0)


def _features(values: ArrayLike, name: str, minimum: int) -> Float64:
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or len(array) < minimum:
        raise ValueError(f"{name} must be an array [N, d] with N >= {minimum}, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return array


def _pair(a: ArrayLike, b: ArrayLike, a_name: str, b_name: str, minimum: int) -> tuple[Float64, Float64]:
    x, y = _features(a, a_name, minimum), _features(b, b_name, minimum)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{a_name} and {b_name} must have the same feature dimension, got {x.shape[1]} and {y.shape[1]}"
        )
    return x, y


def _gaussian(mu: ArrayLike, sigma: ArrayLike, name: str) -> tuple[Float64, Float64]:
    mean, covariance = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mu{name} and sigma{name} must be [d] and [d, d], got {mean.shape} and {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"mu{name} and sigma{name} must be finite, got NaN or infinity")
    return mean, covariance
