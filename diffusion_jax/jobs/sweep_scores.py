"""Scores over samplers, numbers of steps and guidance scales: config.evaluation.sweep_* of the evaluate job."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tqdm

from diffusion_jax.config import build
from diffusion_jax.figures import score_curves
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.scorer import Scorer
from diffusion_jax.jobs.session import Session
from diffusion_jax.metrics import measure

PICTURE = "sweep.png"


def sweep(session: Session) -> dict[str, Any] | None:
    """{"protocol", "results": one entry for each way of sampling}, and DIR/sweep.png; None if no sweep is asked for.

    Every way draws the same images 0, 1, ... from the same noise. Raises ConfigError for a way that cannot be, before
    anything is computed.
    """
    with build.section("evaluation"):
        ways = [session.drawn_by(config) for config in session.method.ways(session)]
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
        print(table(results), file=sys.stderr)
    return {"protocol": scorer.protocol() | {"checkpoint_step": step}, "score": name, "results": results}


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """The results as lines of text, the columns that say something of any of them."""
    names = [name for name in results[0] if any(result[name] is not None for result in results)]
    rows = [names, *([_text(result[name]) for name in names] for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(names))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def describe(session: Session) -> dict[str, Any]:
    """How a session draws, in the columns of the sweep's table."""
    drawn = {**session.method.drawn(session), **session.method.protocol(session)}
    return {
        "sampler": drawn["sampler"],
        "num_steps": drawn["num_steps"],
        "network_evaluations": drawn["network_evaluations_per_image"],
        "guidance_scale": drawn["guidance_scale"],
    }
