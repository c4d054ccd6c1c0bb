"""Watches the steps from the host, a few behind the devices: updates that were left out, and losses that stand out."""

from __future__ import annotations

import collections
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax.training.gradients import Sums
from diffusion_jax.training.logging import say, write_file
from diffusion_jax.training.method import Batch

# Steps that the host may be ahead of the devices: enough to keep them busy, few enough to stop soon.
STEPS_AHEAD = 2
# A loss is compared with so many before it, once there are so many.
WINDOW, MIN_WINDOW = 200, 50
# A spike lies so many standard deviations above the median; the deviation is that of a Gaussian of the same median
# absolute deviation, so that spikes do not hide each other.
SPIKE_DEVIATIONS = 8.0
_GAUSSIAN_OVER_MEDIAN_DEVIATION = 1.4826


@dataclasses.dataclass(frozen=True)
class Spike:
    """A step whose loss stood out.

    Attributes:
      step: the number of updates up to it, itself included.
      loss, grad_norm: of its batch.
      typical_loss: the median of the steps before.
      deviations: how far above it, see SPIKE_DEVIATIONS.
    """

    step: int
    loss: float
    grad_norm: float
    typical_loss: float
    deviations: float


class SpikeDetector:
    """Finds spikes in a stream of losses. Its state is of JSON types: a resumed run finds the same ones."""

    def __init__(self, state: dict[str, Any] | None = None):
        self._window: collections.deque[float] = collections.deque(state["window"] if state else (), maxlen=WINDOW)
        self.spikes = [Spike(**spike) for spike in state["spikes"]] if state else []

    def add(self, step: int, loss: float, grad_norm: float) -> Spike | None:
        """Compares one more loss with those before it."""
        spike = None
        if len(self._window) >= MIN_WINDOW:
            losses = np.asarray(self._window)
            typical = float(np.median(losses))
            deviation = _GAUSSIAN_OVER_MEDIAN_DEVIATION * float(np.median(np.abs(losses - typical)))
            if loss > typical + SPIKE_DEVIATIONS * deviation > typical:
                spike = Spike(step, loss, grad_norm, typical, (loss - typical) / deviation)
                self.spikes.append(spike)
        self._window.append(loss)
        return spike

    def state(self) -> dict[str, Any]:
        return {"window": list(self._window), "spikes": [dataclasses.asdict(spike) for spike in self.spikes]}


@dataclasses.dataclass(frozen=True)
class Flight:
    """A step that was started: its number, counted from 1, the batch that it got, and what it will report."""

    step: int
    batch: Batch
    sums: Sums


class Watch:
    """Reads the report of each step once it is STEPS_AHEAD old, when reading it waits for nothing.

    Attributes:
      failed: the step that was one bad step too many, whose state is still there, or None.
    """

    def __init__(self, workdir: Path, max_bad_steps: int, bad_steps: int, state: dict[str, Any] | None):
        """bad_steps: those in a row up to here. state: from `state`, of the run up to here."""
        self.failed: Flight | None = None
        self._path, self._max_bad_steps, self._bad_steps = workdir / "spikes.json", max_bad_steps, bad_steps
        self._detector = SpikeDetector(state)
        self._ahead: collections.deque[Flight] = collections.deque()
        self._write_spikes()

    def add(self, step: int, batch: Batch, sums: Sums) -> None:
        """One more step was started."""
        for name in ("loss", "grad_norm", "bad_steps"):
            for value in sums[name]:
                value.copy_to_host_async()
        self._ahead.append(Flight(step, batch, sums))
        if len(self._ahead) > STEPS_AHEAD:
            self._read(self._ahead.popleft())

    def drain(self) -> None:
        """Waits for all steps that were started, and reads them."""
        while self._ahead:
            self._read(self._ahead.popleft())

    def state(self) -> dict[str, Any]:
        """What a resumed run continues from; to be asked for after `drain`."""
        return self._detector.state()

    def summary(self) -> str | None:
        """One line about the spikes, if there were any."""
        spikes = self._detector.spikes
        if not spikes:
            return None
        worst = max(spikes, key=lambda spike: spike.deviations)
        return (
            f"the loss stood out at {len(spikes)} steps, most at step {worst.step}: {worst.loss:.4g} instead of "
            f"{worst.typical_loss:.4g} ({self._path.name} lists them)"
        )

    def _read(self, flight: Flight) -> None:
        sums = {name: jax.device_get(flight.sums[name]) for name in ("loss", "grad_norm", "bad_steps")}
        bad, grad_norm = bool(sums["bad_steps"][0]), float(sums["grad_norm"][0])
        if self.failed is not None:
            return
        if bad:
            self._bad_steps += 1
            if self._bad_steps > self._max_bad_steps:
                self.failed = flight
            elif self._bad_steps == 1:
                say(
                    f"step {flight.step}: loss or gradient is not finite; the update is left out "
                    f"(up to {self._max_bad_steps} in a row may be)"
                )
            return
        self._bad_steps = 0
        loss = float(sums["loss"][0] / sums["loss"][1])
        if spike := self._detector.add(flight.step, loss, grad_norm):
            self._write_spikes()
            say(f"step {spike.step}: loss {loss:.4g} stands out from {spike.typical_loss:.4g} (norm {grad_norm:.3g})")

    def _write_spikes(self) -> None:
        spikes = self._detector.state()["spikes"]
        if spikes or self._path.exists():
            write_file(self._path, json.dumps(spikes, indent=2) + "\n")
