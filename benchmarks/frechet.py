"""The Frechet distance from moments beside the scipy.linalg.sqrtm that published code uses, in one run.

    python -m benchmarks.frechet [--dim 2048] [--samples 10000] [--repeats 2]

Prints seconds, the ratio to sqrtm and the difference from it, for moments of full rank and of fewer images than
features. Repeats are interleaved, so that whatever else the machine does falls on all alike; the fastest counts.
"""

from __future__ import annotations

import argparse
import os
import platform as machine
import time

import numpy as np
import scipy
from scipy.linalg import sqrtm

from diffusion_jax.metrics import moments
from diffusion_jax.metrics.distances import Gaussian


def features(generator: np.random.Generator, count: int, dim: int, shift: float) -> np.ndarray:
    """Rectified and correlated, with a mean of about 0.35: like those of Inception's last pool."""
    mixing = np.random.default_rng(0).normal(size=(dim, dim)) / np.sqrt(dim)
    return np.maximum(generator.normal(size=(count, dim)) @ mixing * 0.5 + 0.2 + shift, 0)


def by_sqrtm(first: Gaussian, second: Gaussian) -> float:
    """As pytorch-fid has it: the square root of the product, real part, no rescue."""
    root: np.ndarray = np.asarray(sqrtm(first.covariance @ second.covariance))
    traces = np.trace(first.covariance) + np.trace(second.covariance) - 2 * np.trace(np.real(root))
    return float(np.square(first.mean - second.mean).sum() + traces)


def by_factors(first: Gaussian, second: Gaussian) -> float:
    # new objects, because factors are kept
    return Gaussian(first.mean, first.covariance).distance(Gaussian(second.mean, second.covariance))


def with_reference(first: Gaussian, second: Gaussian) -> float:
    """As the intervals have it, the reference's factor being known."""
    return first.quick_distance(second)


METHODS = {
    "scipy.linalg.sqrtm": by_sqrtm,
    "Gaussian.distance": by_factors,
    "Gaussian.quick_distance": with_reference,
}


def measure(name: str, first: Gaussian, second: Gaussian, repeats: int) -> None:
    """Prints a table of one pair of moments."""
    _ = first.factor
    seconds: dict[str, list[float]] = {method: [] for method in METHODS}
    values = {}
    for _ in range(repeats):
        for method, distance in METHODS.items():
            begun = time.perf_counter()
            values[method] = distance(first, second)
            seconds[method].append(time.perf_counter() - begun)
    peer, peer_value = min(seconds["scipy.linalg.sqrtm"]), values["scipy.linalg.sqrtm"]
    print(f"{name}: {peer_value:.10g}")
    for method in METHODS:
        took = min(seconds[method])
        print(f"  {method:26}{took:9.3f} s   {peer / took:6.2f}x   {values[method] - peer_value:+.2e}")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dim", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    print(f"{machine.machine()}, {os.cpu_count()} cores, numpy {np.__version__}, scipy {scipy.__version__}")
    generator = np.random.default_rng(1)
    reference = Gaussian(*moments(features(generator, options.samples, options.dim, 0.0)))
    for count in (options.samples, options.dim // 4):
        generated = Gaussian(*moments(features(generator, count, options.dim, 0.02)))
        measure(f"d = {options.dim}, {count} generated images", reference, generated, options.repeats)


if __name__ == "__main__":
    main()
