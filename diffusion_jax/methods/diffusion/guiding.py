"""How samples are guided, beside by how much."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.guidance import Predict
from diffusion_jax.diffusion.process import Process


@dataclasses.dataclass(frozen=True)
class Guidance:
    """What a guidance scale acts on.

    Attributes:
      interval: guidance acts where low <= sigma / alpha <= high (Kynkaanniemi et al. 2024); None: everywhere.
      rescale: share of the result that keeps the contrast of the unguided one (Lin et al. 2024, eq. 15 and 16).
      channels: only the first so many of the image's are guided; None: all.
      guide: a weaker network of the same prediction, away from which samples are moved (Karras et al. 2024b); None:
        the network itself, without the class.
      guide_is_conditional: whether the guide is told the class.
      classifier: a network that tells the class of noisy images of the same process, called as network(sample,
        timestep) -> logits; it has a scale of its own (Dhariwal and Nichol 2021). None: no classifier.
    """

    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    channels: int | None = None
    guide: nn.Module | None = None
    guide_is_conditional: bool = False
    classifier: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.interval is not None:
            interval = tuple(self.interval)
            if len(interval) != 2 or not 0 <= interval[0] < interval[1]:
                raise ValueError(f"guidance_interval is {interval}; it must be (low, high) with 0 <= low < high")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"guidance_rescale is {self.rescale}; it must be from 0 to 1")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"guidance_channels is {self.channels}; it must be 1 or more, or None")


def interval_in_timesteps(
    interval: tuple[float, float] | None, process: Process, prediction: str
) -> tuple[float, float] | None:
    """An interval of noise levels sigma / alpha as the network is told of them; open where sampling never goes."""
    if interval is None:
        return None
    least, most = process.ratio_range()
    low, high = interval
    return (
        _timestep(low, process, prediction) if low > least else -math.inf,
        _timestep(high, process, prediction) if high < most else math.inf,
    )


def log_probability_of(classifier: nn.Module, params: Any, labels: jax.Array) -> Predict:
    """log p(label | x_t) [B] as a function of (x_t, t), by a classifier of noisy images; labels: int32 [B]."""

    def log_probability(x: jax.Array, t: jax.Array) -> jax.Array:
        logits: Any = classifier.apply({"params": params}, x, t)
        return jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]

    return log_probability


def _timestep(ratio: float, process: Process, prediction: str) -> float:
    level = np.float64(ratio)
    alpha = process.alpha_at(level)
    return float(predictions.interface(prediction, process.time_of(level), alpha, level * alpha).timestep)
