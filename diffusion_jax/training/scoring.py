"""Scores while training goes on: when they are taken, which parameters are kept for them, and when they end the run.

All decisions follow from the scores in metrics.jsonl up to the step at hand, so a run that was interrupted decides as
one that was not. The training itself is not touched: with and without scores the parameters are the same bits.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.readers import read_rows
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.distributed import by_first
from diffusion_jax.training.logging import say

# The folder of the best parameters, laid out as checkpoints/ is, with "ema_params" alone.
BEST = "best"
Scores = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """What is scored in training.

    Attributes:
      evaluate: (step, averaged parameters) -> scores by name; called by all processes.
      every: steps between scores; the last step is scored too.
      best_by: the score whose best parameters are kept; None keeps none.
      higher_is_better: of that score.
      patience: scores in a row, none of them better than the best before, that end the training; 0 never does.
    """

    evaluate: Callable[[int, Any], Scores]
    every: int
    best_by: str | None = None
    higher_is_better: bool = False
    patience: int = 0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"evaluation.every is {self.every}; it must be at least 1")
        if self.patience < 0:
            raise ValueError(f"evaluation.patience is {self.patience}; it must be at least 0")
        if self.patience and self.best_by is None:
            raise ValueError("evaluation.patience needs a score to wait for: set evaluation.keep_best")


class Scorekeeper:
    """Takes the scores of one run, keeps the best parameters in `workdir`/best, and says when to stop.

    Args:
      scoring: see there.
      workdir: of the run; scores of earlier steps are read from its metrics.jsonl.
      step: the step that the run is at; best parameters of later ones, left by a run that was killed, are deleted.
    """

    def __init__(self, scoring: Scoring, workdir: Path, step: int):
        self._scoring = scoring
        # read by one, so that all decide alike
        history = by_first(lambda: _history(workdir / "metrics.jsonl", scoring.best_by, step))
        self._history: list[tuple[int, float]] = [(at, value) for at, value in history]
        self._checkpoints = Checkpoints(workdir / BEST, max_to_keep=1) if scoring.best_by else None
        if self._checkpoints:
            self._checkpoints.forget_after(step)

    @property
    def stopped(self) -> bool:
        """Whether the scores so far end the training."""
        return bool(self._scoring.patience) and self._since_best() >= self._scoring.patience

    def due(self, step: int, last: bool) -> bool:
        """Whether this step is scored."""
        return last or step % self._scoring.every == 0

    def score(self, step: int, params: Any) -> Scores:
        """Scores the parameters and keeps the best. Raises ValueError if the score to keep by is not among them."""
        scores = self._scoring.evaluate(step, params)
        if self._checkpoints is not None and self._scoring.best_by is not None:
            if self._scoring.best_by not in scores:
                raise ValueError(
                    f"evaluation.keep_best is {self._scoring.best_by!r}, which is not among the scores: "
                    f"{', '.join(scores)}"
                )
            value = _as_written(scores[self._scoring.best_by])
            self._history.append((step, value))
            if self._since_best() == 0:
                self._checkpoints.save(step, {"ema_params": params}, None, {"score": value})
                say(f"step {step}: {self._scoring.best_by} {value:.4g} is the best so far")
            if self.stopped:
                best_step, best = self._best()
                say(f"step {step}: no better {self._scoring.best_by} since {best:.4g} at step {best_step}; stopping")
        return scores

    def __enter__(self) -> Scorekeeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Waits until the best parameters are on disk. Raises CheckpointError if they could not be written."""
        if self._checkpoints is not None:
            self._checkpoints.__exit__(kind, *rest)

    def _best(self) -> tuple[int, float]:
        sign = -1 if self._scoring.higher_is_better else 1
        # the first of equals; what is not a number is worse than anything
        return min(self._history, key=lambda entry: math.inf if math.isnan(entry[1]) else sign * entry[1])

    def _since_best(self) -> int:
        """Scores taken since the best."""
        if not self._history:
            return 0
        best_step, _ = self._best()
        return sum(step > best_step for step, _ in self._history)


def _history(path: Path | os.PathLike[str], name: str | None, step: int) -> list[tuple[int, float]]:
    """(step, value) of a score in metrics.jsonl up to a step; what was not finite is NaN."""
    path = Path(path)
    if name is None or not path.exists():
        return []
    values = {row["step"]: row[name] for row in read_rows(path) if name in row and row["step"] <= step}
    return [(at, math.nan if value is None else value) for at, value in sorted(values.items())]


def _as_written(value: float) -> float:
    """The value with the digits that metrics.jsonl keeps, so that a resumed run compares the same numbers."""
    return float(str(np.float32(value)))
