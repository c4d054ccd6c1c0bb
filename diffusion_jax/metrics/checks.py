"""What every distance asks of its arrays."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float64 = NDArray[np.float64]


def checked_features(values: ArrayLike, name: str, minimum: int) -> Float64:
    """The features as finite float64 [N, d] with N >= minimum; raises ValueError naming them otherwise."""
    array = np.asarray(values, np.float64)
    if array.ndim != 2 or len(array) < minimum:
        raise ValueError(f"{name} must be an array [N, d] with N >= {minimum}, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return array


def checked_pair(a: ArrayLike, b: ArrayLike, a_name: str, b_name: str, minimum: int) -> tuple[Float64, Float64]:
    """Two sets of features of one width, each as in `checked_features`."""
    x, y = checked_features(a, a_name, minimum), checked_features(b, b_name, minimum)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{a_name} and {b_name} must have the same feature dimension, got {x.shape[1]} and {y.shape[1]}"
        )
    return x, y
