"""EDM's released code as the peer: its network, with the preconditioning, loss and Heun sampler of the paper.

The clone of github.com/NVlabs/edm is named by --edm; nothing of it is in this repository. The formulas around the
network are Karras et al. 2022 (arXiv:2206.00364), table 1 and algorithm 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from benchmarks.sides import networks, protocol
from benchmarks.sides.torch_side import TorchSide

SIGMA_DATA, P_MEAN, P_STD = 0.5, -1.2, 1.2
SIGMA_MIN, SIGMA_MAX, RHO = 0.002, 80.0, 7.0


class Edm(TorchSide):
    name = "NVlabs/edm"

    def __init__(self, arguments: argparse.Namespace):
        sys.path.insert(0, arguments.edm)
        super().__init__(arguments)

    def load(self, folder: Path) -> torch.nn.Module:
        settings = json.loads((folder / "config.json").read_text())
        kind, size, channels = (settings.pop(name) for name in ("model_type", "img_resolution", "img_channels"))
        model = getattr(importlib.import_module("training.networks"), kind)(size, channels, channels, **settings)
        file = next(folder.glob("*.safetensors"))
        tensors = {name.removeprefix("model."): value for name, value in safetensors.torch.load_file(file).items()}
        missing, unexpected = model.load_state_dict(tensors, strict=False)
        if unexpected or not all(name.endswith("resample_filter") for name in missing):
            sys.exit(f"{file.name} does not fit {kind}: {missing[:3]} missing, {unexpected[:3]} left over")
        return model

    def call(self, model: Any, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return model(x, t.float(), None)  # integers would make its frequencies integers

    def loss(self) -> torch.Tensor:
        sigma = (torch.randn(len(self.images), 1, 1, 1, device=self.device) * P_STD + P_MEAN).exp()
        denoised = self._denoise(self.images + sigma * torch.randn_like(self.images), sigma)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        return (weight * (denoised - self.images).square()).mean()

    def sample(self) -> None:
        place = torch.linspace(0, 1, self.sampling_steps, dtype=torch.float64)
        low, high = SIGMA_MIN ** (1 / RHO), SIGMA_MAX ** (1 / RHO)
        sigmas = torch.cat([(high + place * (low - high)) ** RHO, torch.zeros(1, dtype=torch.float64)])
        x = torch.randn(self.shape, device=self.device) * SIGMA_MAX
        for now, then in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            slope = (x - self._denoise(x, self._level(now))) / now
            ahead = x + (then - now) * slope
            if then > 0:
                slope = (slope + (ahead - self._denoise(ahead, self._level(then))) / then) / 2
            x = x + (then - now) * slope

    def _level(self, sigma: float) -> torch.Tensor:
        return torch.full((self.shape[0], 1, 1, 1), sigma, device=self.device)

    def _denoise(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        total = sigma**2 + SIGMA_DATA**2
        with self.autocast():
            output = self.call(self.model, x / total.sqrt(), sigma.log().flatten() / 4, self.labels)
        return SIGMA_DATA**2 / total * x + sigma * SIGMA_DATA / total.sqrt() * output.float()


if __name__ == "__main__":
    protocol.serve(lambda: Edm(networks.parse_side()))
