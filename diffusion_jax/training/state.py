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
      profiles: further averages, one for each width of `power_ema.PosthocEMA`.
      method_state: what the method remembers of earlier batches.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any
    profiles: tuple[Any, ...] = ()
    method_state: Any = ()


def create(
    params: Any, optimizer: optax.GradientTransformation, num_profiles: int = 0, method_state: Any = ()
) -> TrainState:
    """The state before the first update; averages start at the parameters."""
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, optimizer.init(params), params, (params,) * num_profiles, method_state)
