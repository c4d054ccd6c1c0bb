"""Trains, resuming what is in the work directory."""

from __future__ import annotations

import signal

import jax

from diffusion_jax import data
from diffusion_jax.conditions.condition import encoders
from diffusion_jax.config import build
from diffusion_jax.jobs import cost, starting
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.sample import sheet
from diffusion_jax.jobs.scorer import training_scores
from diffusion_jax.jobs.session import Session
from diffusion_jax.training import loop
from diffusion_jax.training.checkpoints import newest_step
from diffusion_jax.training.logging import say

# Images in a picture for TensorBoard.
_SHOWN = 16


def train(session: Session) -> signal.Signals | None:
    """Trains to config.training.num_steps; returns the signal that ended it early, if one did."""
    config, options = session.config, session.config.training
    scoring = training_scores(session)
    batches = train_batches(session)
    if line := cost.warning(session, newest_step(session.workdir / "checkpoints")):
        say(line)
    result = loop.train(
        session.model,
        batches,
        session.workdir,
        optimizer=session.optimizer,
        learning_rate=session.learning_rate,
        ema_decay=session.ema_decay,
        mesh=session.mesh,
        posthoc_ema=build.posthoc_ema(config),
        options=loop.TrainingOptions(
            num_steps=options.num_steps,
            seed=config.seed,
            accumulation_steps=options.accumulation_steps,
            matmul_precision=options.matmul_precision,
            log_every=options.log_every,
            checkpoint_every=options.checkpoint_every,
            max_to_keep=options.max_to_keep,
            sanitize_gradients=options.sanitize_gradients,
            max_bad_steps=options.max_bad_steps,
            trainable=options.trainable,
            debug=config.debug,
        ),
        scoring=scoring,
        pictures=_pictures(session),
        start=session.beginning or starting.start(session),
    )
    return result.interrupted


def _pictures(session: Session) -> loop.Pictures | None:
    """Samples for TensorBoard, always from the same noise."""
    sampling = session.config.sampling
    if not sampling.every or "sample" in session.method.jobs:  # of a method that draws no images
        return None
    generator, count = Generator(session), min(sampling.batch_size, _SHOWN)
    return loop.Pictures(lambda params: sheet(generator.part(0, count, params=params)[0], _SHOWN), sampling.every)


def train_batches(session: Session) -> data.TrainIterator:
    """This host's part of the training data, from the start."""
    config = session.config
    with build.section("data"):
        return data.train_iterator(
            session.train_source,
            global_batch_size=config.training.batch_size,
            seed=config.seed,
            flip=config.data.flip,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_workers=config.data.num_workers,
            encoders=encoders(session.model.conditions),
        )
