"""How long a run took, over all its resumptions."""

from __future__ import annotations

import dataclasses
import time
from typing import Any


@dataclasses.dataclass
class Timing:
    """Seconds and steps of a run up to its last checkpoint; it travels in the checkpoints.

    Attributes:
      compile_seconds: tracing and compiling the step.
      train_seconds: from the first step on, with data, reports and saving, without what a kill undid.
      steps, images: updates made in that time, and the examples that they used.
      score_seconds: taking scores on the way, which is not in train_seconds.
    """

    compile_seconds: float = 0.0
    train_seconds: float = 0.0
    steps: int = 0
    images: int = 0
    score_seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """The fields, and steps and images a second of training."""
        seconds = max(self.train_seconds, 1e-9)
        rates = {"steps_per_second": self.steps / seconds, "images_per_second": self.images / seconds}
        return {**dataclasses.asdict(self), **rates}


class Stopwatch:
    """Seconds since it was made or last read."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        seconds, self._last = now - self._last, now
        return seconds

    def skip(self, seconds: float) -> None:
        """Leaves out so many seconds that were spent on something else."""
        self._last += seconds
