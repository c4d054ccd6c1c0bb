"""The Frechet distance and the Inception Score, on the host in float64.

Nothing here knows where the features come from: FID, sFID and FD-DINOv2 are one function of different features. A
value means something only beside its protocol (extractor, sample counts, quantisation).
"""

import dataclasses
import functools
import itertools

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.metrics.checks import Float64, checked_features


def moments(features: ArrayLike) -> tuple[Float64, Float64]:
    """Mean [d] and unbiased covariance [d, d] (divisor N - 1) of features [N, d], both float64.

    Raises ValueError for anything but a finite [N, d] array with N >= 2.
    """
    x = checked_features(features, "features", minimum=2)
    mean = x.mean(axis=0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """N(mean, covariance) [d], [d, d] in float64, with its factor kept: for many distances from one reference."""

    mean: Float64
    covariance: Float64

    @functools.cached_property
    def factor(self) -> Float64:
        """L [d, rank] with covariance = L L^T."""
        values, vectors = np.linalg.eigh((self.covariance + self.covariance.T) / 2.0)
        # Eigenvalues below this are rounding error of a singular matrix; their square roots would not be small.
        kept = values > max(values[-1], 0.0) * len(values) * np.finfo(np.float64).eps
        return vectors[:, kept] * np.sqrt(values[kept])

    def distance(self, other: "Gaussian") -> float:
        """`frechet_distance` of the two."""
        return self._distance(other, float(np.linalg.svd(self.factor.T @ other.factor, compute_uv=False).sum()))

    def quick_distance(self, other: "Gaussian") -> float:
        """The same by the eigenvalues of L^T S L, with this L and the other's covariance S, which is not decomposed.

        For many distances from one reference: a fraction of the time, and square roots of small eigenvalues known only
        to half the digits (1e-7 of the distance or better on features of networks).
        """
        values = np.linalg.eigvalsh(self.factor.T @ other.covariance @ self.factor)
        kept = values[values > values[-1] * len(values) * np.finfo(np.float64).eps]
        return self._distance(other, float(np.sqrt(kept).sum()))

    def _distance(self, other: "Gaussian", cross: float) -> float:
        traces = np.trace(self.covariance) + np.trace(other.covariance)
        value = np.square(self.mean - other.mean).sum() + traces - 2.0 * cross
        return max(float(value), 0.0)  # of equal Gaussians rounding leaves a little on either side of 0


def gaussian(mu: ArrayLike, sigma: ArrayLike, name: str = "") -> Gaussian:
    """The Gaussian of mean [d] and covariance [d, d]; raises ValueError, naming them, if shapes or values cannot be."""
    mean, covariance = np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mu{name} and sigma{name} must be [d] and [d, d], got {mean.shape} and {covariance.shape}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError(f"mu{name} and sigma{name} must be finite, got NaN or infinity")
    return Gaussian(mean, covariance)


def frechet_distance(mu1: ArrayLike, sigma1: ArrayLike, mu2: ArrayLike, sigma2: ArrayLike) -> float:
    """Squared Frechet (2-Wasserstein) distance between N(mu1, sigma1) and N(mu2, sigma2).

    |mu1 - mu2|^2 + tr(sigma1) + tr(sigma2) - 2 tr((sigma1 sigma2)^(1/2))

    (Dowson & Landau 1982; Heusel et al. 2017, eq. 6.) mu [d], sigma [d, d] symmetric positive semi-definite.
    With sigma = L L^T from symmetric eigenvalues, the last trace is the sum of the singular values of L1^T
    L2: no complex numbers, no added epsilon (which would bias the value), and exact for singular covariances
    too, such as those of fewer samples than dimensions. Zero for equal arguments up to rounding, never below. Raises
    ValueError for shapes that do not fit and for values that are not finite.
    """
    first, second = gaussian(mu1, sigma1, "1"), gaussian(mu2, sigma2, "2")
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"mu1 and mu2 must have the same length, got {len(first.mean)} and {len(second.mean)}")
    return first.distance(second)


def inception_score(logits: ArrayLike, splits: int = 10) -> tuple[float, float]:
    """Inception score exp(E_x KL(p(y|x) || p(y))) of logits [N, K]: mean and standard deviation over splits.

    Salimans et al. 2016, section 4. Split i is the rows i N / splits to (i + 1) N / splits in the order
    given, so shuffle rows that are sorted by class; the published protocol uses Inception's logits without
    their bias. Raises ValueError for fewer rows than splits.
    """
    values = checked_features(logits, "logits", minimum=1)
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
