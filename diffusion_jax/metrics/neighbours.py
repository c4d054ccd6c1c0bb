"""Precision, recall, density and coverage: two sets of features compared by their nearest neighbours.

Distances are computed in blocks in float64 on the host: 50,000 images a side need some hundred megabytes, not the 20
gigabytes of the whole matrix. They come from products of matrices, which round; where that could decide whether a point
lies inside a ball, the distance is taken again as the sum of squared differences. So what is equally far counts as
equally far: duplicates, and features that are whole numbers.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.metrics.checks import Float64, checked_pair

ROWS, COLUMNS = 1024, 8192
# Neighbours that are looked at beyond the k-th, for one that rounding has put behind it.
_SPARE = 8
# Values that are in memory at once where differences are taken.
_AT_ONCE = 1 << 22
Precision = Literal["float64", "float16"]
Block = tuple[slice, slice, Float64]


def precision_recall(
    real: ArrayLike, generated: ArrayLike, k: int = 3, precision: Precision = "float64"
) -> tuple[float, float]:
    """Improved precision and recall of real [N, d] and generated [M, d] features.

    Kynkaanniemi et al. 2019, eq. 1-2. A set's manifold is the union of balls around its points, each reaching its k-th
    nearest neighbour, border included. Precision is the share of generated points inside the real manifold, recall the
    share of real points inside the generated one. `precision` "float16" rounds as the ADM evaluator does, which moves
    both values by up to a few hundredths (and agrees with it to about 1e-3: its order of sums is not known). Raises
    ValueError for a side of k points or fewer.
    """
    x, y = _sides(real, generated, k)
    return (
        _share_inside(y, x, neighbour_radii(x, k, precision), precision),
        _share_inside(x, y, neighbour_radii(y, k, precision), precision),
    )


def density_coverage(real: ArrayLike, generated: ArrayLike, k: int = 5) -> tuple[float, float]:
    """Density and coverage of generated [M, d] features around real [N, d] ones.

    Naeem et al. 2020, eq. 5-6, with their strict inequality. Density is the mean number of real balls (each reaching
    the real point's k-th real neighbour) that hold a generated point, over k; it may exceed 1. Coverage is the share of
    real balls that hold any. Raises ValueError for a side of k points or fewer.
    """
    x, y = _sides(real, generated, k)
    radii = neighbour_radii(x, k)
    held, covered = 0, np.zeros(len(x), bool)
    for rows, columns, distances in squared_distances(y, x):
        inside = distances < radii[columns]
        for i, j in _undecided(distances, radii, y, x, rows, columns):
            inside[i, j] = _exact(y[rows][i], x[columns][j]) < radii[columns][j]
        held += int(inside.sum())
        covered[columns] |= inside.any(axis=0)
    return held / (k * len(y)), float(covered.mean())


def neighbour_radii(points: Float64, k: int, precision: Precision = "float64") -> Float64:
    """Squared distance [N] of each point to its k-th nearest neighbour, itself not counted."""
    # The point itself is at distance 0, so the k-th neighbour is element k of the sorted distances.
    size = min(k + 1 + _SPARE, len(points))
    nearest, places = np.full((len(points), size), np.inf), np.zeros((len(points), size), np.int64)
    for rows, columns, distances in squared_distances(points, points, precision):
        candidates = np.concatenate([nearest[rows], distances], axis=1)
        numbers = np.broadcast_to(np.arange(len(points))[columns], distances.shape)
        chosen = np.argpartition(candidates, size - 1, axis=1)[:, :size]
        nearest[rows] = np.take_along_axis(candidates, chosen, axis=1)
        places[rows] = np.take_along_axis(np.concatenate([places[rows], numbers], axis=1), chosen, axis=1)
    if precision == "float16":
        return np.partition(nearest, k, axis=1)[:, k]
    exact = np.empty_like(nearest)
    step = max(1, _AT_ONCE // (size * points.shape[1]))
    for start in range(0, len(points), step):
        rows = slice(start, start + step)
        exact[rows] = _exact(points[rows, None], points[places[rows]])
    radii = np.partition(exact, k, axis=1)[:, k]
    # With more neighbours nearly as far than were kept, all have to be looked at.
    crowded = nearest.max(axis=1) <= radii + 2 * _rounding(points, points.mean(axis=0))
    for i in np.flatnonzero(crowded) if size < len(points) else ():
        radii[i] = np.partition(_exact(points, points[i]), k)[k]
    return radii


def squared_distances(x: Float64, y: Float64, precision: Precision = "float64") -> Iterator[Block]:
    """Squared distances of all pairs, block by block: (rows, columns, values)."""
    if precision == "float16":
        yield from _half_precision_distances(x, y)
        return
    centre = y.mean(axis=0)  # distances do not change, and lose fewer digits to the norms
    x, y = x - centre, y - centre
    x_norms, y_norms = np.square(x).sum(axis=1), np.square(y).sum(axis=1)
    for rows, columns in _blocks(len(x), len(y)):
        products = x[rows] @ y[columns].T
        yield rows, columns, np.maximum(x_norms[rows, None] - 2.0 * products + y_norms[columns], 0.0)


def _half_precision_distances(x: Float64, y: Float64) -> Iterator[Block]:
    """Every operation's result rounded to float16, products summed in float32: as on the GPU that ADM's ran on."""
    halves = [values.astype(np.float16) for values in (x, y)]
    wide = [values.astype(np.float32) for values in halves]
    with np.errstate(over="ignore", invalid="ignore"):
        norms = [np.square(values).sum(axis=1, dtype=np.float32).astype(np.float16) for values in halves]
        for rows, columns in _blocks(len(x), len(y)):
            products = (wide[0][rows] @ wide[1][columns].T).astype(np.float16)
            distances = (norms[0][rows, None] - np.float16(2) * products) + norms[1][columns]
            if not np.isfinite(distances).all():
                raise ValueError("distances overflow float16, in which ADM's evaluator would go on in float32")
            yield rows, columns, np.maximum(distances, np.float16(0)).astype(np.float64)


def _share_inside(points: Float64, centres: Float64, squared_radii: Float64, precision: Precision) -> float:
    inside = np.zeros(len(points), bool)
    for rows, columns, distances in squared_distances(points, centres, precision):
        within = distances <= squared_radii[columns]
        if precision == "float64":
            for i, j in _undecided(distances, squared_radii, points, centres, rows, columns):
                within[i, j] = _exact(points[rows][i], centres[columns][j]) <= squared_radii[columns][j]
        inside[rows] |= within.any(axis=1)
    return float(inside.mean())


def _undecided(
    distances: Float64, radii: Float64, points: Float64, centres: Float64, rows: slice, columns: slice
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (i, j) of a block, some at a time, in which rounding could have moved a point across a ball's border."""
    middle = centres.mean(axis=0)
    bound = _rounding(points[rows], middle)[:, None] + _rounding(centres[columns], middle)
    i, j = np.nonzero(np.abs(distances - radii[columns]) <= bound)
    step = max(1, _AT_ONCE // points.shape[1])
    for start in range(0, len(i), step):
        yield i[start : start + step], j[start : start + step]


def _rounding(points: Float64, middle: Float64) -> Float64:
    """What a point adds to the largest error of a squared distance from products, [N]."""
    factor = 4 * (points.shape[1] + 8) * np.finfo(np.float64).eps
    return factor * np.square(points - middle).sum(axis=1)


def _exact(x: Float64, y: Float64) -> Float64:
    """Squared distances along the last axis: the same for (x, y) and (y, x), and exact for whole numbers."""
    return np.square(x - y).sum(axis=-1)


def _blocks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    for row in range(0, rows, ROWS):
        for column in range(0, columns, COLUMNS):
            yield slice(row, row + ROWS), slice(column, column + COLUMNS)


def _sides(real: ArrayLike, generated: ArrayLike, k: int) -> tuple[Float64, Float64]:
    x, y = checked_pair(real, generated, "real", "generated", minimum=2)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"precision, recall, density and coverage need more than {k} features a side, as they look at the k-th "
            f"neighbour and k is {k}; there are {len(x)} real and {len(y)} generated ones"
        )
    return x, y
