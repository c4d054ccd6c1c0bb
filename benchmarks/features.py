"""Inception's features beside torch-fidelity's network with the same weights, images a second.

    python -m benchmarks.features --batch 32 --size 32 --peer-python OTHER/bin/python

OTHER has torch and torch-fidelity. Each side is a process of its own and reads the same weights (those of
the tests' goldens) and images; their features are compared before anything is timed, and then they work in turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.networks import processor
from benchmarks.sides.protocol import Side
from tests import golden

# Larger differences mean that the two sides do not compute the same.
TOLERANCE = 1e-4


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32, help="side of the images")
    parser.add_argument("--turns", type=int, default=5, help="of each side")
    parser.add_argument("--peer-python", default=sys.executable, help="where torch and torch-fidelity are installed")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights: dict[str, Any] = golden.fill_tensors("inception-fid")
        np.savez(folder / "weights.npz", **weights)
        shape = (given.batch, given.size, given.size, 3)
        np.save(folder / "images.npy", np.random.default_rng(0).integers(0, 256, shape, np.uint8))
        sides = [
            Side(sys.executable, "benchmarks.sides.inception", [name]),
            Side(given.peer_python, "benchmarks.sides.inception_peer", [name]),
        ]
        ours, theirs = (np.load(folder / f"{side.facts['file']}") for side in sides)
        difference = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
        print(f"largest difference between the features, relative: {difference:.1e}")
        if not difference < TOLERANCE:
            sys.exit("the two sides are not the same network")
        seconds: list[list[float]] = [[] for _ in sides]
        for turn in range(given.turns + 1):
            for taken, side in zip(seconds, sides, strict=True):
                elapsed = side.run()
                if turn:  # the first one warms up
                    taken.append(elapsed)
        rates = [given.batch / statistics.median(taken) for taken in seconds]
        print(f"Inception, {given.batch} images of {given.size} pixels, float32, {processor()}, {os.cpu_count()} cores")
        print(f"{'':44} {'images/s':>9} {'compile s':>10} {'peak GiB':>9} {'ratio':>6}")
        for side, rate in zip(sides, rates, strict=True):
            facts = side.facts
            print(f"{facts['name']:44} {rate:9.3g} {facts['compile_seconds']:10.1f} "
                  f"{side.peak_bytes() / 2**30:9.2f} {rate / rates[-1]:6.2f}   {facts['device']}")  # fmt: skip
            side.close()


if __name__ == "__main__":
    main()
