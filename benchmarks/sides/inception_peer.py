"""The peer's side: torch-fidelity's Inception, features and logits as for its FID and Inception Score."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.sides import protocol

# The network's file without the rest of its package, whose other networks need torchvision.
spec = importlib.util.find_spec("torch_fidelity")
if spec is None or spec.submodule_search_locations is None:
    sys.exit("torch-fidelity is not installed here; name a Python that has it and torch with --peer-python")
package = types.ModuleType("torch_fidelity")
package.__path__ = list(spec.submodule_search_locations)
sys.modules["torch_fidelity"] = package
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3  # noqa: E402


class Peer:
    def __init__(self, folder: Path):
        with np.load(folder / "weights.npz") as arrays:
            state = {name: torch.from_numpy(array) for name, array in arrays.items()}
        torch.save(state, folder / "weights.pth")
        self.on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat",
            ["2048", "logits_unbiased"],
            feature_extractor_weights_path=str(folder / "weights.pth"),
        )
        self.network = self.network.eval().to(self.device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        images = np.moveaxis(np.load(folder / "images.npy"), -1, 1)
        self.images = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        begun = time.perf_counter()
        np.save(folder / "theirs.npy", self._features().cpu().numpy())
        self.first_seconds = time.perf_counter() - begun

    @torch.inference_mode()
    def _features(self) -> torch.Tensor:
        features = self.network(self.images)[0]
        if self.on_gpu:
            torch.cuda.synchronize()
        return features

    def facts(self) -> dict[str, Any]:
        return {
            "name": f"torch-fidelity {importlib.metadata.version('torch-fidelity')} (torch {torch.__version__})",
            "device": torch.cuda.get_device_name() if self.on_gpu else f"cpu, {torch.get_num_threads()} threads",
            "compile_seconds": self.first_seconds,
            "file": "theirs.npy",
        }

    def run(self) -> float:
        begun = time.perf_counter()
        self._features()
        return time.perf_counter() - begun

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated() if self.on_gpu else protocol.process_peak_bytes()


if __name__ == "__main__":
    protocol.serve(lambda: Peer(Path(sys.argv[1])))
