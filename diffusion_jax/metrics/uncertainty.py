"""How far a Frechet distance can be trusted: its standard error, and its value at infinitely many images.

The distance falls as images become more, by about 1/N (Chong & Forsyth 2020), so a bootstrap, whose samples repeat
images, is biased upwards. What is left out here is left out without replacement. Only moments of parts are needed, so
this costs some Frechet distances and no second look at the images.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffusion_jax.metrics.checks import Float64, checked_features
from diffusion_jax.metrics.distances import Gaussian

# Student's t at 97.5 % for so many groups less one; beyond the table it is the normal's.
_T_QUANTILES = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 19: 2.093}


class Part(NamedTuple):
    """Moments of some of the images: their number, their mean [d], and the sum of squares about it [d, d]."""

    count: int
    mean: Float64
    scatter: Float64

    def gaussian(self) -> Gaussian:
        return Gaussian(self.mean, self.scatter / (self.count - 1))


class Estimate(NamedTuple):
    """A standard error and the 95 % confidence interval (low, high) about a value."""

    standard_error: float
    low: float
    high: float


def parts(features: ArrayLike, count: int) -> list[Part]:
    """Moments of `count` consecutive groups of the features [N, d], of sizes that differ by at most one."""
    x = checked_features(features, "features", minimum=2 * count)
    return [_part(group) for group in np.array_split(x, count)]


def merged(pieces: Sequence[Part]) -> Part:
    """The moments of all images of the pieces (Chan, Golub & LeVeque 1979)."""
    count = sum(piece.count for piece in pieces)
    mean = sum((piece.count / count * piece.mean for piece in pieces), np.zeros_like(pieces[0].mean))
    scatter = np.zeros_like(pieces[0].scatter)
    for piece in pieces:
        difference = piece.mean - mean
        scatter += piece.scatter + piece.count * np.outer(difference, difference)
    return Part(count, mean, scatter)


def frechet_interval(pieces: Sequence[Part], reference: Gaussian) -> Estimate:
    """Spread of the distance of all images from the reference, as other images of the generator would have it.

    The jackknife over groups: each is left out in turn. The interval is that of Student's t with one degree of freedom
    less than there are groups, about the distance of all images, cut at 0. It says nothing about the distance's bias
    (:func:`frechet_infinity` does) nor about the reference's own sampling. Raises ValueError for fewer than 2 groups.
    """
    if len(pieces) < 2:
        raise ValueError(f"an interval needs at least 2 groups of images, got {len(pieces)}")
    value = reference.quick_distance(merged(pieces).gaussian())
    without = [
        reference.quick_distance(merged([*pieces[:i], *pieces[i + 1 :]]).gaussian()) for i in range(len(pieces))
    ]  # fmt: skip
    estimate = jackknife(value, np.array(without))
    return estimate._replace(low=max(estimate.low, 0.0))  # no distance is below


def jackknife(value: float, without: NDArray[np.float64]) -> Estimate:
    """The estimate from the value of all groups and the values [groups] without each."""
    groups = len(without)
    error = float(np.sqrt((groups - 1) * np.var(without)))
    reach = _T_QUANTILES.get(groups - 1, 1.96 if groups > 20 else 2.262) * error
    return Estimate(error, value - reach, value + reach)


def frechet_infinity(
    features: ArrayLike, reference: Gaussian, points: int = 15, smallest: int = 5000, seed: int = 0
) -> float:
    """FID-infinity: the distance at 1/N = 0 on the line through the distances of growing numbers of images.

    Chong & Forsyth 2020, Algorithm 1: images are shuffled, `points` sizes are evenly spaced from `smallest` (a tenth of
    N, where N is not twice as large) to N, and a line in 1/N is fitted by least squares. The bias of the reference's
    own moments stays. Raises ValueError for fewer than 20 images or 2 points.
    """
    x = checked_features(features, "features", minimum=20)
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    start = smallest if len(x) >= 2 * smallest else max(len(x) // 10, 2)
    sizes = np.unique(np.linspace(start, len(x), points).astype(int))
    order = np.random.default_rng(seed).permutation(len(x))
    # The sizes are nested, so each adds a part to the one before.
    total, values, before = None, [], 0
    for size in sizes:
        part = _part(x[order[before:size]])
        total = part if total is None else merged([total, part])
        values.append(reference.quick_distance(total.gaussian()))
        before = size
    slope_and_value = np.polynomial.polynomial.polyfit(1.0 / sizes, np.array(values), 1)
    return float(slope_and_value[0])


def _part(x: Float64) -> Part:
    mean = x.mean(axis=0)
    centred = x - mean
    return Part(len(x), mean, centred.T @ centred)
