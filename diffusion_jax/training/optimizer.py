"""Optimisers: gradient clipping, then an update rule, then a learning rate that follows a schedule."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from diffusion_jax.options import described, unknown

# The parameters as they have to be after an update.
Projection = Callable[[Any], Any]
# The learning rate from the number of updates made before (int32 scalar).
LearningRate = Callable[[Any], jax.Array]

# An update rule with its options, for a learning rate.
Rule = Callable[[LearningRate], optax.GradientTransformation]

_BETAS = {
    "b1": "decay of the mean of the gradients",
    "b2": "decay of the mean of their squares",
    "eps": "added to the root of that mean",
}


@described(_BETAS)
def adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Adam (Kingma and Ba 2015)."""
    return functools.partial(optax.adam, b1=b1, b2=b2, eps=eps)


@described(_BETAS, weight_decay="of every parameter, apart from the gradients")
def adamw(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 1e-2) -> Rule:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return functools.partial(optax.adamw, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


@described(_BETAS)
def radam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Rectified Adam (Liu et al. 2020)."""
    return functools.partial(optax.radam, b1=b1, b2=b2, eps=eps)


@described(momentum="share of the last update that is kept")
def sgd(momentum: float = 0.0) -> Rule:
    """Stochastic gradient descent."""
    return functools.partial(optax.sgd, momentum=momentum)


# The options of each beside the learning rate are its arguments.
OPTIMIZERS: dict[str, Callable[..., Rule]] = {"adam": adam, "adamw": adamw, "radam": radam, "sgd": sgd}
# What a schedule multiplies the learning rate by, as a function of progress in [0, 1] through the steps after warm-up.
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "constant": jnp.ones_like,
    "cosine": lambda progress: 0.5 * (1 + jnp.cos(math.pi * progress)),
    "linear": lambda progress: 1 - progress,
}
# EDM2's rule decays from a step of its own on and has no end.
INVERSE_SQRT = "inverse_sqrt"


@described(
    learning_rate="of the updates, after warm-up",
    warmup_steps="updates in which the learning rate grows; 0 starts at the full one",
    warmup_images="the same in images; only one of the two can be given",
    schedule="of the learning rate: constant, cosine (to 0), linear (to 0) or inverse_sqrt",
    decay_start="updates after which inverse_sqrt decays",
    clip_norm="the gradient is scaled down to this norm where it is larger; None: never",
)
@dataclasses.dataclass(frozen=True)
class Descent:
    """The options of `make_optimizer` that every update rule has, which checks them."""

    learning_rate: float = 2e-4
    warmup_steps: int = 0
    warmup_images: int | None = None
    schedule: str = "constant"
    decay_start: int | None = None
    clip_norm: float | None = 1.0


def make_optimizer(
    name: str = "adam",
    learning_rate: float = 2e-4,
    warmup_steps: int = 0,
    warmup_images: int | None = None,
    schedule: str = "constant",
    decay_start: int | None = None,
    num_steps: int | None = None,
    batch_size: int | None = None,
    clip_norm: float | None = 1.0,
    b1: float | None = None,
    b2: float | None = None,
    eps: float | None = None,
    weight_decay: float | None = None,
    momentum: float | None = None,
) -> tuple[optax.GradientTransformation, LearningRate]:
    """An optimiser and its learning rate as a function of the number of updates made before.

    Warm-up is DDPM's, learning_rate * min(step / warmup_steps, 1) (Ho et al. 2020, released code), so that the first
    update has learning rate 0 exactly; the schedule takes over after it and ends at num_steps. In images
    instead of steps it is EDM's (Karras et al. 2022, released code).

    Args:
      name: "adam", "adamw" (decoupled weight decay of every parameter), "radam" or "sgd".
      learning_rate: after warm-up.
      warmup_steps: 0 starts at the full learning rate.
      warmup_images: the same in images; only one of the two can be given.
      schedule: "constant", "cosine" (to 0), "linear" (to 0), or "inverse_sqrt", learning_rate /
        sqrt(max(step / decay_start, 1)) (Karras et al. 2024, released code), whatever the warm-up.
      decay_start: t_ref of "inverse_sqrt", in updates.
      num_steps: length of the run in updates; needed by "cosine" and "linear".
      batch_size: images an update, over all hosts; needed by warmup_images.
      clip_norm: the gradient is scaled down to this global norm where it is larger; None never does.
      b1, b2, eps, weight_decay, momentum: of the update rule; None takes its default (`OPTIMIZERS`).

    Raises:
      ValueError: an unknown name, a value out of its range, or an option that the update rule does not have.
    """
    if name not in OPTIMIZERS:
        raise unknown("optimizer.name", name, OPTIMIZERS)
    if not learning_rate > 0:
        raise ValueError(f"optimizer.learning_rate is {learning_rate}; it must be above 0")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"optimizer.clip_norm is {clip_norm}; it must be above 0, or None to never clip")
    taken = inspect.signature(OPTIMIZERS[name]).parameters
    given = {"b1": b1, "b2": b2, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}
    options = {}
    for option, value in given.items():
        if value is None:
            continue
        if option not in taken:
            has = ", ".join(taken)
            raise ValueError(f"optimizer.{option} is {value}, but {name!r} does not have it; it has {has}")
        if not (0 <= value < 1 if option in ("b1", "b2", "momentum") else value >= 0):
            allowed = "at least 0 and below 1" if option in ("b1", "b2", "momentum") else "at least 0"
            raise ValueError(f"optimizer.{option} is {value}; it must be {allowed}")
        options[option] = value
    warmup = _warmup_steps(warmup_steps, warmup_images, batch_size)
    rate = make_schedule(learning_rate, warmup, schedule, num_steps, decay_start)
    update = OPTIMIZERS[name](**options)(rate)
    return (update if clip_norm is None else optax.chain(optax.clip_by_global_norm(clip_norm), update)), rate


def make_schedule(
    learning_rate: float,
    warmup_steps: float = 0,
    schedule: str = "constant",
    num_steps: int | None = None,
    decay_start: int | None = None,
) -> LearningRate:
    """The learning rate as a function of the number of updates made before; arguments as in `make_optimizer`."""
    if schedule not in (*SCHEDULES, INVERSE_SQRT):
        raise unknown("optimizer.schedule", schedule, (*SCHEDULES, INVERSE_SQRT))
    if warmup_steps < 0:
        raise ValueError(f"optimizer.warmup_steps is {warmup_steps}; it must be at least 0")
    if (decay_start is not None) != (schedule == INVERSE_SQRT):
        needs = f"schedule {INVERSE_SQRT!r} needs it and no other has it"
        raise ValueError(f"optimizer.decay_start is {decay_start}, but optimizer.schedule is {schedule!r}; {needs}")
    if decay_start is not None and decay_start < 1:
        raise ValueError(f"optimizer.decay_start is {decay_start}; it must be at least 1")
    decay_steps = 1
    if schedule in ("cosine", "linear"):
        if num_steps is None:
            raise ValueError(f"optimizer.schedule {schedule!r} decays to the end of the run, so it needs num_steps")
        if num_steps <= warmup_steps:
            needs = f"schedule {schedule!r} needs it below the {num_steps} steps"
            raise ValueError(f"optimizer.warmup_steps is {warmup_steps:g}; {needs}")
        decay_steps = num_steps - warmup_steps

    def rate(step: Any) -> Any:
        step = jnp.asarray(step, jnp.float32)
        warmup = jnp.minimum(step / warmup_steps, 1) if warmup_steps else 1.0
        if decay_start is not None:
            return learning_rate * warmup / jnp.sqrt(jnp.maximum(step / decay_start, 1))
        progress = jnp.clip((step - warmup_steps) / decay_steps, 0, 1)
        return learning_rate * warmup * SCHEDULES[schedule](progress)

    return rate


def projected(update: optax.GradientTransformation, projection: Projection) -> optax.GradientTransformation:
    """The optimiser with its updates changed so that `projection` has no effect on the parameters that they lead to.

    For constraints that are restored after each update, such as EDM2's normalised weights (Karras et al. 2024, eq. 66).
    """

    def project(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = update.update(updates, state, params)
        onto = projection(optax.apply_updates(params, updates))
        return jax.tree.map(jnp.subtract, onto, params), state

    return optax.GradientTransformation(update.init, project)


def _warmup_steps(steps: int, images: int | None, batch_size: int | None) -> float:
    if images is None:
        return steps
    if steps:
        raise ValueError(f"optimizer.warmup_images is {images} and optimizer.warmup_steps {steps}; only one can be set")
    if images < 0:
        raise ValueError(f"optimizer.warmup_images is {images}; it must be at least 0")
    if not batch_size:
        raise ValueError(f"optimizer.warmup_images is {images}, which needs the batch size, got {batch_size}")
    return images / batch_size
