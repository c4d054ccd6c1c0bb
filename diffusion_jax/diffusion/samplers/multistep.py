"""What the multistep solvers share: how much of their order each step can use."""

from __future__ import annotations

import numpy as np

# With fewer steps than this, the last ones are taken at a lower order for stability (DPM-Solver++, the authors' code).
FEW_STEPS = 15


def orders(num_steps: int, order: int, *, taper: bool = False, to_zero: bool = False) -> list[int]:
    """The order of each step, which grows from 1 while estimates are gathered.

    taper: it falls to 1 again at the end. to_zero: the last step ends at zero noise, and must be of order 1.
    """
    if order < 1:
        raise ValueError(f"order is {order}; it must be 1 or more")
    steps = np.arange(num_steps)
    usable = np.minimum(order, steps + 1)
    if taper:
        usable = np.minimum(usable, num_steps - steps)
    if to_zero:
        usable[-1] = 1
    return usable.tolist()


def lagrange_weights(points: np.ndarray, start: float, end: float, weight_log: bool) -> np.ndarray:
    """Integrals from start to end of the Lagrange polynomials of `points`, float64 [len(points)].

    weight_log False: of L_k(s) ds. True: of L_k(log s) ds for log s given, that is of L_k(u) e^u du. Gauss-Legendre
    quadrature: exact for the first, to rounding for the second.
    """
    nodes, weights = np.polynomial.legendre.leggauss(32)
    u = start + (end - start) * (nodes + 1) / 2
    measure = (end - start) / 2 * weights * (np.exp(u) if weight_log else 1.0)
    basis = [
        np.prod([(u - other) / (point - other) for j, other in enumerate(points) if j != k], axis=0)
        for k, point in enumerate(points)
    ]
    return np.array([np.sum(measure * values) for values in basis])
