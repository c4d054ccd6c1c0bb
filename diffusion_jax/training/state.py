"""What a run carries from step to step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from diffusion_jax.training import subset
from diffusion_jax.training.method import (
    WHOLE,
    AlternatingMethod,
    Batch,
    Method,
    WholeBatchMethod,
    by_part,
    drawn_with,
    pick,
)

# One optimiser, or one for each part of the parameters.
Optimizers = optax.GradientTransformation | Mapping[str, optax.GradientTransformation]


@flax.struct.dataclass
class TrainState:
    """Everything that the next step depends on, beside the seed and the data.

    Attributes:
      step: int32 scalar, the number of updates made.
      params: the trained parameters.
      opt_state: the state of the optimiser; of an alternating method, part -> that of its optimiser.
      ema_params: the exponential moving average of the parameters, with which images are sampled; of an alternating
        method, of the part that it draws with.
      profiles: further averages, one for each width of `power_ema.PosthocEMA`.
      method_state: what the method remembers of earlier batches: losses, statistics, the strength of augmentation.
      bad_steps: int32 scalar, the updates that were left out up to here in a row, see `step.make_train_step`.
      frozen: the parameters that are not trained, see `subset`. They are in no checkpoint.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema_params: Any
    profiles: tuple[Any, ...] = ()
    method_state: Any = ()
    bad_steps: Any = 0
    frozen: Any = ()


def create(
    params: Any,
    optimizer: Optimizers,
    num_profiles: int = 0,
    method_state: Any = (),
    averaged: str = WHOLE,
    trainable: Sequence[str] = (),
) -> TrainState:
    """The state before the first update; averages start at the parameters.

    Args:
      params: all of them.
      optimizer: or one for each part of the parameters.
      num_profiles: how many further averages there are.
      method_state: see `TrainState`.
      averaged: the part that averages are kept of.
      trainable: patterns of the parameters that are trained, see `subset.split`.
    """
    zero = jnp.zeros((), jnp.int32)
    trained, frozen = subset.split(params, trainable)
    states = {part: update.init(pick(trained, part)) for part, update in by_part(optimizer).items()}
    average = pick(trained, averaged)
    return TrainState(
        zero,
        trained,
        states.get(WHOLE, states),
        average,
        (average,) * num_profiles,
        method_state,
        zero,
        frozen,
    )


def begun(
    method: Method | AlternatingMethod,
    optimizer: Optimizers,
    params: Any,
    num_profiles: int = 0,
    trainable: Sequence[str] = (),
) -> TrainState:
    """The state before the first update of a method, from all its parameters."""
    method_state = method.init_state() if isinstance(method, WholeBatchMethod) else ()
    return create(params, optimizer, num_profiles, method_state, drawn_with(method), trainable)


def initial(
    method: Method | AlternatingMethod,
    optimizer: Optimizers,
    key: jax.Array,
    batch: Batch,
    num_profiles: int = 0,
    trainable: Sequence[str] = (),
) -> TrainState:
    """The state before the first update of a method, for batches shaped like `batch`."""
    return begun(method, optimizer, method.init(key, batch), num_profiles, trainable)
