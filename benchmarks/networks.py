"""Training and sampling beside the same network in diffusers, or in EDM's released code.

    python -m benchmarks.networks train --network unet_cifar10 --batch 16
    python -m benchmarks.networks sample --network dit_b2 --batch 8 --precision bfloat16 --peer-python OTHER/bin/python
    python -m benchmarks.networks train --network ddpmpp_cifar10 --edm CLONE_OF_NVLABS_EDM

Each side is a process of its own. Ours writes its weights as the peer reads them; the peer loads them, and their
outputs are compared before anything is timed. Then the two work in turns, so that whatever else the machine does falls
on both. A train step is forward, backward, gradient clipping, Adam and the moving average. Sampling is DDIM, or Heun's
method for EDM's network.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform as machine
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.sides.networks import JOBS, NETWORKS, PRECISIONS
from benchmarks.sides.protocol import Side

# Seconds before each turn: OpenMP's threads turn in circles for a while after the other side's work.
PAUSE = 1.0
# Larger differences mean that the two sides do not compute the same.
TOLERANCE = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 1e-1}


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--network", choices=NETWORKS, default="unet_cifar10")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--turns", type=int, default=5, help="of each side")
    parser.add_argument("--rounds", type=int, default=1, help="train steps or batches of samples a turn")
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--peer-python", default=sys.executable, help="where torch and diffusers are installed")
    parser.add_argument("--edm", help="a clone of github.com/NVlabs/edm, the peer of ddpmpp_cifar10")
    given = parser.parse_args()
    in_edm = NETWORKS[given.network].in_edm
    if given.peer_python == sys.executable and not importlib.util.find_spec("torch" if in_edm else "diffusers"):
        sys.exit("the peer is not installed here; name a Python that has torch and diffusers with --peer-python")
    if in_edm and not (given.edm and (Path(given.edm) / "training" / "networks.py").exists()):
        sys.exit(f"{given.network} is compared with EDM's code; name a clone of github.com/NVlabs/edm with --edm")

    with tempfile.TemporaryDirectory() as folder:
        arguments = [given.job, f"--network={given.network}", f"--batch={given.batch}", f"--rounds={given.rounds}"]
        arguments += [
            f"--sampling-steps={given.sampling_steps}",
            f"--precision={given.precision}",
            f"--folder={folder}",
        ]
        sides = [Side(sys.executable, "benchmarks.sides.ours", arguments)]
        peer = "edm_peer" if in_edm else "peer"
        edm = [f"--edm={Path(given.edm).resolve()}"] if in_edm else []
        sides.append(Side(given.peer_python, f"benchmarks.sides.{peer}", arguments + edm))
        difference = sides[1].facts["difference"]
        print(f"largest difference between the outputs, relative: {difference:.1e}")
        if not difference < TOLERANCE[given.precision] or len({side.facts["parameters"] for side in sides}) > 1:
            sys.exit("the two sides are not the same network")
        seconds: list[list[float]] = [[] for _ in sides]
        for turn in range(given.turns + 1):
            for taken, side in zip(seconds, sides, strict=True):
                time.sleep(PAUSE)
                elapsed = side.run()
                if turn:  # the first one warms up
                    taken.append(elapsed)
        rates = [given.batch * given.rounds / statistics.median(taken) for taken in seconds]
        print(f"{given.job} {given.network}, {sides[0].facts['parameters']:,} parameters, batch {given.batch}, "
              f"{given.precision}, {processor()}, {os.cpu_count()} cores")  # fmt: skip
        print(f"{'':44} {'images/s':>9} {'compile s':>10} {'peak GiB':>9} {'ratio':>6}")
        for side, rate in zip(sides, rates, strict=True):
            facts = side.facts
            print(f"{facts['name']:44} {rate:9.3g} {facts['compile_seconds']:10.1f} "
                  f"{side.peak_bytes() / 2**30:9.2f} {rate / rates[-1]:6.2f}   {facts['device']}")  # fmt: skip
        for side in sides:
            side.close()


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else machine.machine()


if __name__ == "__main__":
    main()
