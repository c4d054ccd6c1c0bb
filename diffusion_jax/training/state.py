"""What a run carries from step to step."""

from __future__ import annotations

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from diffusion_jax.training.method import Batch, Method, WholeBatchMethod


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
      bad_steps: int32 scalar, the updates that were left out up to here in a row, see `step.make_train_step`.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any
    profiles: tuple[Any, ...] = ()
    method_state: Any = ()
    bad_steps: Any = 0


def create(
    params: Any, optimizer: optax.GradientTransformation, num_profiles: int = 0, method_state: Any = ()
) -> TrainState:
    """The state before the first update; averages start at the parameters."""
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, optimizer.init(params), params, (params,) * num_profiles, method_state, zero)


def initial(
    method: Method, optimizer: optax.GradientTransformation, key: jax.Array, batch: Batch, num_profiles: int = 0
) -> TrainState:
    """The state before the first update of a method, for batches shaped like `batch`."""
    method_state = method.init_state() if isinstance(method, WholeBatchMethod) else ()
    return create(method.init(key, batch), optimizer, num_profiles, method_state)
