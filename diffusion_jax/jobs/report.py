"""Writes report.html from what the other jobs left in the work directory."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import flax
import jax
import optax
from ml_collections import ConfigDict

import diffusion_jax
from diffusion_jax import readers
from diffusion_jax.config import ConfigError
from diffusion_jax.jobs import records, sweep_scores
from diffusion_jax.jobs.session import Session
from diffusion_jax.metrics import measure
from diffusion_jax.training.logging import count_parameters


def report(session: Session) -> None:
    """One self-contained page about the run.

    Raises ConfigError, naming the file, where training, sampling or evaluation left what cannot be read.
    """
    config, workdir = session.config, session.workdir
    step, params = session.parameters
    if not session.paints:  # reading checkpoints takes all processes, the page one
        return
    scores = records.read(workdir, "evaluation.json")
    sampling = records.read(workdir, "sampling.json")
    seconds = scores.pop("seconds", {})
    # The pictures may have been drawn otherwise than the config says now.
    drawn = dict(session.method.drawn(session))
    drawn |= records.like(sampling, drawn, workdir / "sampling.json")
    what, ending = session.method.summary(session, drawn)
    basics = {
        "title": config.name,
        "summary": (
            f"{what[:1].upper()}{what[1:]} of images of {config.data.image_size}x{config.data.image_size} pixels "
            f"({config.data.name}), trained for {step:,} steps on {_seen(session, step)}{ending}."
        ),
        "command": session.command,
        "settings": config.to_dict(),
        "num_parameters": count_parameters(params),
        "parameter_overview": records.text(workdir, "parameters.txt"),
        "metrics": records.rows(workdir),
        "scores": scores,
        "training_scores": _training_scores(config, workdir),
        "timing": _timing(workdir, sampling, seconds),
        "machine": machine(),
        "samples": records.picture(workdir, "samples.png"),
        "real": records.picture(workdir, "real.png"),
        "sweep": records.picture(workdir, sweep_scores.PICTURE) if "sweep" in scores else None,
    }
    names = ("sampling.gif", *session.method.shows)
    pictures = {name: found for name in names if (found := records.picture(workdir, name)) is not None}
    try:
        session.method.write_report(session, basics, drawn, pictures)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:  # the one file whose content is free
        raise ConfigError(
            f"{workdir / 'evaluation.json'} does not hold what --mode evaluate writes "
            f"({readers.one_line(repr(error), 80)}); run it again"
        ) from error


def _seen(session: Session, step: int) -> str:
    """How many images, and how often each: 1,438 different images, 267 times each."""
    images, different = session.config.training.batch_size * step, len(session.train_source)
    times = images / different
    often = f"{times:,.0f} times" if times >= 10 else f"{times:.2g} times"
    return f"{images:,} images: {different:,} different ones, each {often}" + (
        " and mirrored half of the time" if session.config.data.flip else ""
    )


def _timing(workdir: Path, sampling: dict[str, Any], evaluation: Any) -> dict[str, float]:
    training = records.read(workdir, "timing.json")
    parts = [
        ("compile_training_seconds", training, "compile_seconds", "timing.json"),
        ("training_seconds", training, "train_seconds", "timing.json"),
        ("training_steps_per_second", training, "steps_per_second", "timing.json"),
        ("training_images_per_second", training, "images_per_second", "timing.json"),
        ("compile_sampler_seconds", sampling, "compile_seconds", "sampling.json"),
        ("sampling_images_per_second", sampling, "images_per_second", "sampling.json"),
    ]
    named = evaluation if isinstance(evaluation, dict) else {}
    parts += [(f"evaluation_{name}_seconds", named, name, "evaluation.json") for name in named]
    return {
        shown: records.number(record, name, workdir / file) for shown, record, name, file in parts if name in record
    }


def machine() -> dict[str, str]:
    """What the numbers of a report were measured on."""
    return {
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind} ({jax.default_backend()})",
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "diffusion_jax": diffusion_jax.__version__,
    }


def _training_scores(config: ConfigDict, workdir: Path) -> list[str]:
    """The names in metrics.jsonl of the scores that were taken in training, one a metric."""
    protocol = records.read(workdir, "scoring.json")
    if not protocol:
        return []
    if not isinstance(protocol.get("extractor"), str):
        raise ConfigError(f"{workdir / 'scoring.json'} names no extractor; train again, or take the file away")
    return [measure.Names(protocol["extractor"]).main(name) for name in config.evaluation.metrics]
