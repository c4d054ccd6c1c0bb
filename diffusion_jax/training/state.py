"""What a run carries from step to step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
    """Everything that the next step depends on, beside the seed and the data.

    Attributes:
      step: int32 scalar, the number of updates made.
      params: the trained parameters.
      opt_state: the state of the optimiser.
      ema_params: the exponential moving average of the parameters, with which images are sampled.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any


def create(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first update; the average starts at the parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), params)
