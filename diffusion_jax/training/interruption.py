"""SIGTERM and Ctrl-C as a question that the loop asks between steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Interruption:
    """While entered, the first SIGTERM or SIGINT is noted in `signal` instead of ending the process.

    A second one does what it always did, so that a run that hangs can still be ended. With several processes JAX's
    own watch over SIGTERM is asked instead, because all of them have to stop at the same step. Outside the main
    thread, where Python hears no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step` updates. Every process asks at every step, and all hear the same."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def exit_code(number: signal.Signals) -> int:
    """What a shell reports of a process that a signal ended: 143 for SIGTERM, 130 for Ctrl-C."""
    return 128 + number
