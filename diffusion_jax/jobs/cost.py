"""What a run will cost on this machine, said before anything is compiled."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.conditions.condition import nulls
from diffusion_jax.jobs.session import Session
from diffusion_jax.training.method import turns_of

# A training step is a forward pass and two of its size backwards.
_PASSES = 3
# What a network sustains of the rate of large products on a CPU, by measurements of ours from 0.15 to 0.5.
_SHARE = 0.3
# Estimates below this are not worth a line.
_LEAST_SECONDS = 20 * 60
_SIDE = 1024


def warning(session: Session, done: int = 0) -> str | None:
    """A line about a run that takes long on a CPU; None for others, and for accelerators.

    From the operations of a forward pass and a product that is timed here, and so off by a factor of two or three at
    times, by more where other work comes and goes. done: updates that have been made.
    """
    if jax.default_backend() != "cpu":
        return None
    training = session.config.training
    images = training.batch_size * (training.num_steps - done)
    seconds = _PASSES * _forward_operations(session) * images / (_SHARE * _rate())
    if seconds < _LEAST_SECONDS:
        return None
    return (
        f"this run will take about {_duration(seconds)} on this machine, which has no accelerator; fewer "
        "config.training.num_steps, a smaller config.data.image_size and fewer config.model.channels cost less, "
        "--config.quick=True shows the whole in a minute; a config may have a size for a CPU, as image_folder.py:cpu"
    )


def _forward_operations(session: Session) -> float:
    """Of one image through the losses of a step, by XLA's count for the program before it is optimised."""
    model = session.model
    batch = {
        "image": jax.ShapeDtypeStruct((1, *model.image_shape), jnp.float32),
        "condition": jax.eval_shape(lambda: nulls(model.conditions, 1)),
        "position": jax.ShapeDtypeStruct((1,), jnp.int32),
    }
    params = jax.eval_shape(model.init, jax.random.key(0), batch)
    step = jax.ShapeDtypeStruct((), jnp.int32)
    total = 0.0
    for turn in turns_of(model):
        lowered = jax.jit(turn.loss).lower(params, batch, jax.random.key(0), step)
        total += float((lowered.cost_analysis() or {}).get("flops", 0.0)) / turn.every
    return total


def _rate() -> float:
    """Operations a second of a product of matrices, float32, on all cores."""
    product = jax.jit(jnp.matmul)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((_SIDE, _SIDE)), jnp.float32)
    jax.block_until_ready(product(x, x))
    begun = time.monotonic()
    jax.block_until_ready([product(x, x) for _ in range(4)])
    return 4 * 2 * _SIDE**3 / max(time.monotonic() - begun, 1e-9)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"
