"""Batch normalisation with fixed statistics, folded into the convolution before it."""

import numpy as np

EPSILON = 1e-3  # of TensorFlow's networks


def folded(
    kernel: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> dict[str, np.ndarray]:
    """Kernel and bias, float32, of (conv(x) - mean) / sqrt(variance + 0.001) * gamma + beta; computed in float64.

    Args:
      kernel: [..., out].
      gamma, beta, mean, variance: out numbers each.
    """
    gamma, beta, mean, variance = (np.asarray(part, np.float64).reshape(-1) for part in (gamma, beta, mean, variance))
    scale = gamma / np.sqrt(variance + EPSILON)
    return {"kernel": (kernel * scale).astype(np.float32), "bias": (beta - mean * scale).astype(np.float32)}
