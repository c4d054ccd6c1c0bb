"""Precision, recall, density and coverage: two sets of features compared by their nearest neighbours.

Distances are computed in blocks in float64 on the host: 50,000 images a side need some hundred megabytes, not the 20
gigabytes of the whole matrix.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from diffusion_jax.metrics.checks import Float64, checked_pair

ROWS, COLUMNS = 1024, 8192
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
    for _, columns, distances in squared_distances(y, x):
        inside = distances < radii[columns]
        held += int(inside.sum())
        covered[columns] |= inside.any(axis=0)
    return held / (k * len(y)), float(covered.mean())


def neighbour_radii(points: Float64, k: int, precision: Precision = "float64") -> Float64:
    """Squared distance [N] of each point to its k-th nearest neighbour, itself not counted."""
    # The point itself is at distance 0, so the k-th neighbour is element k of the sorted distances.
    nearest = np.full((len(points), k + 1), np.inf)
    for rows, _, distances in squared_distances(points, points, precision):
        candidates = np.concatenate([nearest[rows], distances], axis=1)
        nearest[rows] = np.partition(candidates, k, axis=1)[:, : k + 1]
    return nearest.max(axis=1)


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
        inside[rows] |= (distances <= squared_radii[columns]).any(axis=1)
    return float(inside.mean())


def _blocks(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    for row in range(0, rows, ROWS):
        for column in range(0, columns, COLUMNS):
            yield slice(row, row + ROWS), slice(column, column + COLUMNS)


def _sides(real: ArrayLike, generated: ArrayLike, k: int) -> tuple[Float64, Float64]:
    x, y = checked_pair(real, generated, "real", "generated", minimum=2)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(f"k must be from 1 to {min(len(x), len(y)) - 1} (one less than the smaller side), got {k}")
    return x, y
