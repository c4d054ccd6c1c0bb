"""The networks that are compared, for both sides; needs neither JAX nor PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

import numpy as np

JOBS = ("train", "sample")
PRECISIONS = ("float32", "tf32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and the least around it that makes a train step.

    Attributes:
      fields: of the config's model section; dropout is off, so that both sides compute the same.
      peer: the class that is the same network, in diffusers or, if `in_edm`, in EDM's released code.
    """

    fields: dict[str, Any]
    image_size: int
    channels: int
    peer: str
    in_edm: bool = False
    num_classes: int | None = None
    process: str = "linear"
    prediction: str = "epsilon"
    weighting: str = "simple"
    sampler: str = "ddim"


NETWORKS = {
    # the network of google/ddpm-cifar10-32
    "unet_cifar10": Network(
        fields={
            "name": "unet", "channels": 128, "channel_mults": (1, 2, 2, 2), "num_res_blocks": 2,
            "attention_resolutions": (16,), "dropout": 0.0,
        },
        image_size=32,
        channels=3,
        peer="UNet2DModel",
    ),
    # EDM's for CIFAR-10; diffusers has no such network, the paper's code has
    "ddpmpp_cifar10": Network(
        fields={
            "name": "edm_unet", "family": "song", "channels": 128, "channel_mults": (2, 2, 2), "num_res_blocks": 4,
            "attention_resolutions": (16,), "embedding": "positional", "encoder": "standard",
            "resample_filter": (1, 1), "noise_channel_mult": 1, "dropout": 0.0,
        },
        image_size=32,
        channels=3,
        peer="SongUNet",
        in_edm=True,
        process="edm",
        prediction="edm",
        weighting="edm",
        sampler="edm",
    ),
    # DiT-B/2 as diffusers has it: every block embeds time and class for itself
    "dit_b2": Network(
        fields={
            "name": "dit", "width": 768, "depth": 12, "num_heads": 12, "patch_size": 2, "image_size": 32,
            "shared_conditioning": False, "freq_shift": 1.0, "mlp_norm_eps": 1e-5,
        },
        image_size=32,
        channels=4,
        peer="DiTTransformer2DModel",
        num_classes=1000,
    ),
}  # fmt: skip


def inputs(network: Network, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Two images [2, *shape], timesteps and labels that both sides are given before they are timed."""
    random = np.random.default_rng(1)
    values = {"x": random.standard_normal((2, *shape)).astype(np.float32), "t": np.array([10, 700], np.int32)}
    if network.num_classes is not None:
        values["labels"] = np.array([3, 999], np.int32)
    return values


def perturbed(params: Any) -> Any:
    """The parameters with a little noise: a fresh network ends in zeros, whatever is wrong before."""
    if isinstance(params, dict):
        return {name: perturbed(value) for name, value in sorted(params.items())}
    noise = np.random.default_rng(params.size).standard_normal(params.shape, np.float32)
    return params + 0.02 * noise


def parse_side() -> argparse.Namespace:
    """The arguments that a side is started with."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--sampling-steps", type=int, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--edm", help="a clone of github.com/NVlabs/edm")
    return parser.parse_args()
