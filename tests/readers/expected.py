"""What the files of write_fixtures.py hold."""

import numpy as np

EXPECTED = {
    "float32": np.arange(12, dtype=np.float32).reshape(3, 4) / 8,
    "transposed": (np.arange(12, dtype=np.float32).reshape(3, 4) / 8).T,
    "slice": (np.arange(12, dtype=np.float32).reshape(3, 4) / 8)[1:, 1:3],
    "float64": np.array([1 / 3, -2.0]),
    "half": np.array([1.5, -0.25], np.float16),
    "bfloat16": np.array([[1.0, -3.140625]], np.float32),
    "integers": np.array([[-(2**40), 7]]),
    "scalar": np.array(41),
    "flags": np.array([True, False, True]),
    "bytes": np.array([0, 255], np.uint8),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": np.array([0.5, 2.0], np.float32),
}
# What modules hold, by the names of their state dict.
MODULE = {
    "conv.weight": np.arange(12, dtype=np.float32).reshape(2, 3, 1, 2),
    "conv.bias": np.array([0.5, -0.5], np.float32),
    "blocks.first.0.weight": np.arange(4, dtype=np.float32).reshape(2, 2),
    "blocks.first.0.bias": np.array([3.0, 4.0], np.float32),
    "filter": np.array([1.0, 2.0], np.float16),
}
