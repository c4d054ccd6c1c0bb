"""The peer's side in PyTorch: a network with our weights, as a careful user trains and samples it.

On a GPU: torch.compile, channels last, fused Adam, and autocast for bfloat16. On a CPU: as it comes, which is faster
there.
"""

from __future__ import annotations

import abc
import argparse
import contextlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim import swa_utils

from benchmarks.sides import networks, protocol


class TorchSide(abc.ABC):
    """All but the network itself, its loss and its sampler."""

    name: str  # of the peer, with its version

    def __init__(self, arguments: argparse.Namespace):
        self.network = networks.NETWORKS[arguments.network]
        self.on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        self.rounds, self.precision = arguments.rounds, arguments.precision
        self.sampling_steps = arguments.sampling_steps
        tf32 = arguments.precision != "float32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(0)

        folder = Path(arguments.folder)
        model = self.load(folder / "network").to(self.device)
        self.difference = self._compare(model, folder)
        self.parameters = list(model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        if self.on_gpu:
            model = torch.compile(model.to(memory_format=torch.channels_last))
        self.model: Any = model
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-4, fused=self.on_gpu, foreach=not self.on_gpu)
        self.update_average = swa_utils.get_ema_multi_avg_fn(0.9999)
        size, channels = self.network.image_size, self.network.channels
        self.shape = (arguments.batch, channels, size, size)
        self.images = torch.rand(self.shape, device=self.device) * 2 - 1
        if self.on_gpu:
            self.images = self.images.to(memory_format=torch.channels_last)
        self.labels = torch.zeros(arguments.batch, dtype=torch.long, device=self.device)
        self.round = self._train if arguments.job == "train" else self._sample
        begun = time.perf_counter()
        self.round()
        self._wait()
        self.compile_seconds = time.perf_counter() - begun

    @abc.abstractmethod
    def load(self, folder: Path) -> torch.nn.Module:
        """The network with the weights that we have saved in the folder."""

    @abc.abstractmethod
    def call(self, model: Any, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The network's raw output."""

    @abc.abstractmethod
    def loss(self) -> torch.Tensor:
        """Of self.images, a scalar."""

    @abc.abstractmethod
    def sample(self) -> None:
        """Images from noise in self.sampling_steps steps."""

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def _compare(self, model: Any, folder: Path) -> float:
        """Largest difference between the two sides' outputs, relative to the largest output."""
        shape = (self.network.image_size, self.network.image_size, self.network.channels)
        inputs = networks.inputs(self.network, shape)
        x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(inputs["x"], -1, 1))).to(self.device)
        t = torch.from_numpy(inputs["t"]).to(self.device)
        labels = torch.from_numpy(inputs["labels"]).long().to(self.device) if "labels" in inputs else t
        model.eval()  # the transformer drops labels in training
        with torch.no_grad(), self.autocast():
            theirs = np.moveaxis(self.call(model, x, t, labels).float().cpu().numpy(), 1, -1)
        ours = np.load(folder / "ours.npz")["output"]
        return float(np.abs(ours - theirs).max() / np.abs(theirs).max())

    def _train(self) -> None:
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.update_average(self.average, self.parameters, 1)

    @torch.inference_mode()
    def _sample(self) -> None:
        self.sample()

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def facts(self) -> dict[str, Any]:
        how = ", compiled, channels last" if self.on_gpu else ""
        return {
            "name": f"{self.name} (torch {torch.__version__}{how})",
            "device": torch.cuda.get_device_name() if self.on_gpu else f"cpu, {torch.get_num_threads()} threads",
            "parameters": sum(parameter.numel() for parameter in self.parameters),
            "compile_seconds": self.compile_seconds,
            "difference": self.difference,
        }

    def run(self) -> float:
        begun = time.perf_counter()
        for _ in range(self.rounds):
            self.round()
        self._wait()
        return time.perf_counter() - begun

    def peak_bytes(self) -> int:
        return torch.cuda.max_memory_allocated() if self.on_gpu else protocol.process_peak_bytes()
