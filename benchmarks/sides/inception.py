"""Our side: the extractor as the metrics run it."""

from __future__ import annotations

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Any

from diffusion_jax import platform

platform.prepare()
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # the time of compilation is one of the results

import jax  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.sides import protocol  # noqa: E402
from diffusion_jax.metrics import features  # noqa: E402


class Ours:
    def __init__(self, folder: Path):
        os.environ["XDG_CACHE_HOME"] = str(folder)  # where the weights would be kept
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the weights are not known ones
            extractor = features.load("inception", folder / "weights.npz")
        self.images, self.params = np.load(folder / "images.npy"), jax.device_put(extractor.params)
        begun = time.perf_counter()
        self.compiled = jax.jit(extractor.apply).lower(self.params, self.images).compile()
        self.compile_seconds = time.perf_counter() - begun
        np.save(folder / "ours.npy", self.compiled(self.params, self.images)["features"])

    def facts(self) -> dict[str, Any]:
        device = jax.devices()[0]
        return {
            "name": f"diffusion_jax (jax {jax.__version__})",
            "device": f"{device.platform} {device.device_kind}",
            "compile_seconds": self.compile_seconds,
            "file": "ours.npy",
        }

    def run(self) -> float:
        begun = time.perf_counter()
        jax.block_until_ready(self.compiled(self.params, self.images))
        return time.perf_counter() - begun

    def peak_bytes(self) -> int:
        stats = jax.devices()[0].memory_stats()
        return stats["peak_bytes_in_use"] if stats else protocol.process_peak_bytes()


if __name__ == "__main__":
    protocol.serve(lambda: Ours(Path(sys.argv[1])))
