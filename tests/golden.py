"""Reads tests/goldens: outputs of reference implementations on tiny networks.

A folder holds the reference's own ``config.json``, ``tensors.json`` (parameter name -> shape, as in its
state dict and .safetensors file) and ``golden.npz`` (inputs and outputs, float32; images and latents NHWC).
The weights are not stored: they follow from their names by the rule of :func:`fill`.

    from tests import golden

    expected = golden.load("unet2d-ddpm-cifar")
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

GOLDENS = Path(__file__).parent / "goldens"


def load(name: str, file: str = "golden.npz") -> dict[str, np.ndarray]:
    """The recorded inputs and outputs of ``name``, by their key in the .npz file."""
    with np.load(GOLDENS / name / file) as arrays:
        return dict(arrays)


def config(name: str, file: str = "config.json") -> dict[str, Any]:
    """The reference's configuration (for the samplers: ``file="schedulers.json"``)."""
    return json.loads((GOLDENS / name / file).read_text())


def fill_tensors(name: str) -> dict[str, np.ndarray]:
    """The reference network's state dict: parameter name -> array, filled by the rule."""
    rule = fill_inception if name.split("/")[0] == "inception-fid" else fill
    shapes = json.loads((GOLDENS / name / "tensors.json").read_text())
    return {tensor: rule(tensor, tuple(shape)) for tensor, shape in shapes.items()}


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 weights of one tensor, from its name and shape alone.

    Vectors are near one (weights of normalisation layers) or near zero (biases); everything else is normal
    with variance 1 / fan-in, the fan-in of PyTorch's layout, where the output axis comes first.
    """
    normal = _normal(name, shape)
    if len(shape) == 1:
        return 1 + 0.05 * normal if name.endswith("weight") else 0.05 * normal
    # float32 over float64 is float64: the quotient is rounded once, as in the recording
    return (normal / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def fill_inception(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The rule for Inception: stronger convolutions, and statistics for batch normalisation."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)  # a counter that no output depends on
    if name.endswith("running_mean"):
        return 0.05 * _normal(name, shape)
    if name.endswith("running_var"):
        return 1 + 0.2 * np.abs(_normal(name, shape))
    weights = fill(name, shape)
    return np.float32(1.6) * weights if len(shape) == 4 else weights


def _normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
