"""Writes report.html from what the other jobs left in the work directory."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

import flax
import jax
import optax
from ml_collections import ConfigDict

import diffusion_jax
from diffusion_jax.config import ConfigError
from diffusion_jax.figures import report as page
from diffusion_jax.jobs import sweep_scores
from diffusion_jax.jobs.session import Session
from diffusion_jax.metrics import measure
from diffusion_jax.training.logging import count_parameters


def report(session: Session) -> None:
    """One self-contained page about the run.

    Raises ConfigError, naming the file, where training, sampling or evaluation left nothing to report.
    """
    config, workdir = session.config, session.workdir
    require_products(workdir)
    step, params = session.parameters
    if jax.process_index() != 0:  # reading checkpoints takes all processes, the page one
        return
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    scores = _read(workdir / "evaluation.json")
    timing, sampling = _read(workdir / "timing.json"), _read(workdir / "sampling.json")
    seconds = scores.pop("seconds", {})

    images = config.training.batch_size * step
    kind = "a class-conditional" if session.num_classes is not None else "an unconditional"
    content = page.Report(
        title=config.name,
        summary=(
            f"{kind.capitalize()} diffusion model of {config.data.name} images at {config.data.image_size}x"
            f"{config.data.image_size} pixels, trained for {step:,} steps on {images:,} images and sampled with "
            f"{config.sampling.name.upper()} in {session.method.sampler.num_steps} steps."
        ),
        command=session.command,
        settings=config.to_dict(),
        num_parameters=count_parameters(params),
        parameter_overview=_text(workdir / "parameters.txt"),
        metrics=rows,
        scores=scores,
        training_scores=_training_scores(config, workdir),
        timing={
            "compile_training_seconds": timing.get("compile_seconds", 0.0),
            "training_seconds": timing.get("train_seconds", 0.0),
            "training_steps_per_second": timing.get("steps_per_second", 0.0),
            "training_images_per_second": timing.get("images_per_second", 0.0),
            "compile_sampler_seconds": sampling.get("compile_seconds", 0.0),
            "sampling_images_per_second": sampling.get("images_per_second", 0.0),
            **{f"evaluation_{name}_seconds": value for name, value in seconds.items()},
        },
        machine=machine(),
        prediction=config.method.prediction,
        sampler=config.sampling.name,
        num_steps=session.method.sampler.num_steps,
        guidance_scale=config.sampling.guidance_scale if session.guided else None,
        classifier_scale=config.sampling.classifier_scale if config.sampling.classifier else None,
        samples=workdir / "samples.png",
        animation=workdir / "sampling.gif",
        denoising=workdir / "denoising.png",
        noising=workdir / "forward_noising.png",
        sweep=workdir / sweep_scores.PICTURE if "sweep" in scores else None,
    )
    page.write_report(workdir / "report.html", content)


def require_products(workdir: Path) -> None:
    """Raises ConfigError, naming the file, where an earlier job left nothing to report."""
    for name, mode in (("metrics.jsonl", "train"), ("samples.png", "sample"), ("evaluation.json", "evaluate")):
        if not (workdir / name).is_file():
            raise ConfigError(f"{workdir / name} is missing, which the report shows; run --mode {mode} first")


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
    protocol = _read(workdir / "scoring.json")
    return [measure.Names(protocol["extractor"]).main(name) for name in config.evaluation.metrics] if protocol else []


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""
