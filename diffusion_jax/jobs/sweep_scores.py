"""Scores over samplers, numbers of steps and guidance scales: config.evaluation.sweep_* of the evaluate job."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import jax
import tqdm

from diffusion_jax.config import ConfigError
from diffusion_jax.figures import score_curves
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.measure import Scorer
from diffusion_jax.jobs.session import Session
from diffusion_jax.methods.diffusion.building import sampler
from diffusion_jax.metrics import measure

PICTURE = "sweep.png"


def sweep(session: Session) -> dict[str, Any] | None:
    """{"protocol", "results": one entry for each way of sampling}, and DIR/sweep.png; None if no sweep is asked for.

    Every way draws the same images 0, 1, ... from the same noise. Raises ConfigError for a way that cannot be, before
    anything is computed.
    """
    ways = list(_ways(session))
    if not ways:
        return None
    scorer = Scorer(session)
    step, params = session.parameters
    results = []
    for way in tqdm.tqdm(ways, desc="sweep", unit="setting", file=sys.stderr, disable=not sys.stderr.isatty()):
        scores = scorer.score(Generator(way), params)
        results.append({**describe(way), **scores})
    name = measure.Names(scorer.published.extractor).main(scorer.metrics[0])
    if jax.process_index() == 0:
        score_curves.write_score_curves(session.workdir / PICTURE, results, name)
    return {"protocol": scorer.protocol() | {"checkpoint_step": step}, "score": name, "results": results}


def describe(session: Session) -> dict[str, Any]:
    """How a session samples: sampler, steps, network evaluations an image (guidance takes two), guidance scale."""
    config, sampler = session.config.sampling, session.method.sampler
    return {
        "sampler": config.name,
        "num_steps": sampler.num_steps,
        "network_evaluations": sampler.num_evaluations * (2 if session.guided else 1),
        "guidance_scale": config.guidance_scale if _can_guide(session) else None,
    }


def _ways(session: Session) -> Iterator[Session]:
    config = session.config
    sweeps = config.evaluation
    if not (sweeps.sweep_samplers or sweeps.sweep_steps or sweeps.sweep_guidance):
        return
    if sweeps.sweep_guidance and not _can_guide(session):
        raise ConfigError(
            "config.evaluation.sweep_guidance needs a class-conditional method that was trained with "
            "config.method.label_dropout above 0, or config.sampling.guide"
        )
    samplers = sweeps.sweep_samplers or (config.sampling.name,)
    steps = sweeps.sweep_steps or (None,)  # as set, or else by the default of each sampler
    scales = sweeps.sweep_guidance or (config.sampling.guidance_scale,)
    for name, num_steps, scale in itertools.product(samplers, steps, scales):
        yield sampled_by(session, name, num_steps, float(scale))


def _can_guide(session: Session) -> bool:
    is_trained_for_it = session.num_classes is not None and session.config.method.label_dropout > 0
    return is_trained_for_it or session.method.guidance.guide is not None


def sampled_by(session: Session, name: str, num_steps: int | None, guidance_scale: float) -> Session:
    """The same run sampled in another way; what was set of the sampler is kept where the other has it too."""
    config = session.config.copy_and_resolve_references()
    config.sampling.name = name
    config.sampling.guidance_scale = guidance_scale
    if num_steps is not None:
        config.sampling.num_steps = num_steps
    changed = copy.copy(session)
    changed.config = config
    process = session.method.objective.process
    changed.trained = dataclasses.replace(session.method, sampler=sampler(config, process))
    return changed
