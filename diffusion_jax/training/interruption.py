"""Signals as a question that the loop asks between steps, and the exit codes that tell of them.

SIGTERM and SIGINT (Ctrl-C) ask a run to save and end. SIGUSR1 asks it to save and to be started again: it is what SLURM
sends before the time is up, and what `maintenance` sends at a notice of the cloud.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

# EX_TEMPFAIL of sysexits.h. The launchers start a run again that ends with it.
RESTART = 75


class Interruption:
    """While entered, the first SIGTERM, SIGINT or SIGUSR1 is noted in `signal` instead of ending the process.

    A second SIGTERM or SIGINT does what it always did, so that a run that hangs can still be ended. With several
    processes JAX's own watch over SIGTERM is asked instead, because all of them have to stop at the same step. Outside
    the main thread, where Python hears no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._warned = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._warn)
            if jax.process_count() == 1:
                for number in (signal.SIGTERM, signal.SIGINT):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore(*self._previous)

    def requested(self, step: int) -> bool:
        """Whether to save and stop after `step` updates. Every process asks at every step, and all hear the same."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGUSR1 if self._warned else signal.SIGTERM
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = signal.Signals(number)
        self._restore(signal.SIGTERM, signal.SIGINT)

    def _warn(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._warned:
            return
        self._warned = True
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX hears it and tells the others
        else:
            self.signal = self.signal or signal.SIGUSR1

    def _restore(self, *numbers: signal.Signals) -> None:
        for number in numbers:
            if number in self._previous:
                signal.signal(number, self._previous.pop(number))


@contextlib.contextmanager
def restarting_on_warnings() -> Iterator[None]:
    """SIGUSR1 ends the process with RESTART, outside of an `Interruption`, where there is nothing to save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGUSR1, lambda *_: os._exit(RESTART))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, previous)


def exit_code(number: signal.Signals) -> int:
    """143 for SIGTERM and 130 for Ctrl-C, as a shell reports them; RESTART for SIGUSR1."""
    return RESTART if number == signal.SIGUSR1 else 128 + number
