"""Runs the step at which training stopped again, and says what is not finite, and where."""

from __future__ import annotations

import jax

from diffusion_jax.jobs.session import Session
from diffusion_jax.jobs.train import train_batches
from diffusion_jax.training import replay as kept
from diffusion_jax.training import sharding, state
from diffusion_jax.training.logging import say
from diffusion_jax.training.method import Batch, drawn_with


def replay(session: Session) -> None:
    """Prints what training/replay.py finds. Raises CheckpointError where training has left nothing to replay."""
    options = session.config.training
    batch = sharding.global_batch(session.mesh, next(train_batches(session)))

    def create(key: jax.Array, batch: Batch) -> state.TrainState:
        return state.initial(session.model, session.optimizer, key, batch, trainable=options.trainable)

    shapes = sharding.sharded_shapes(session.mesh, jax.eval_shape(create, jax.random.key(0), batch))
    for line in kept.diagnose(
        session.model,
        session.optimizer,
        session.mesh,
        kept.load(session.workdir, shapes, batch, drawn_with(session.model)),
        accumulation_steps=options.accumulation_steps or 1,
        matmul_precision=options.matmul_precision,
    ):
        say(line)
