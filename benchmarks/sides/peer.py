"""diffusers as the peer: its networks, the epsilon loss and its DDIM."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from benchmarks.sides import networks, protocol
from benchmarks.sides.torch_side import TorchSide


class Diffusers(TorchSide):
    name = f"diffusers {diffusers.__version__}"

    def __init__(self, arguments: argparse.Namespace):
        self.schedule = DDIMScheduler(1000, beta_schedule="linear", clip_sample=False)
        self.schedule.set_timesteps(arguments.sampling_steps)
        super().__init__(arguments)

    def load(self, folder: Path) -> torch.nn.Module:
        assert self.network.peer is not None
        return getattr(diffusers, self.network.peer).from_pretrained(folder)

    def call(self, model: Any, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.network.num_classes is None:
            return model(x, t, return_dict=False)[0]
        return model(x, timestep=t, class_labels=labels, return_dict=False)[0]

    @functools.cached_property
    def alphas(self) -> torch.Tensor:
        return self.schedule.alphas_cumprod.to(self.device)

    def loss(self) -> torch.Tensor:
        t = torch.randint(0, 1000, (len(self.images),), device=self.device)
        noise = torch.randn_like(self.images)
        alpha = self.alphas[t].view(-1, 1, 1, 1)
        x = alpha.sqrt() * self.images + (1 - alpha).sqrt() * noise
        with self.autocast():
            output = self.call(self.model, x, t, self.labels)
        return (output.float() - noise).square().mean()

    def sample(self) -> None:
        x = torch.randn(self.shape, device=self.device)
        for t in self.schedule.timesteps:
            with self.autocast():
                output = self.call(self.model, x, t.to(self.device).expand(len(x)), self.labels)
            x = self.schedule.step(output.float(), int(t), x, return_dict=False)[0]


if __name__ == "__main__":
    protocol.serve(lambda: Diffusers(networks.parse_side()))
