"""One of several losses, as methods give them and the training loop takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Turn:
    """A loss which trains a part of the parameters while the other parts stand still.

    Attributes:
      name: what it reports is called "loss_<name>" and "grad_norm_<name>".
      part: the key of the parameters that it trains.
      loss: of (parameters of all parts, batch, key, step): the scalar and what to report, as
        `diffusion_jax.training.method.Method.loss`.
      every: it is taken in every so many steps, the first of them included.
    """

    name: str
    part: str
    loss: Callable[..., Any]
    every: int = 1
