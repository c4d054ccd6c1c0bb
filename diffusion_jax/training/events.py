"""TensorBoard event files, written as the loop goes.

tensorboardX supplies format and framing. Its SummaryWriter is not used: that writes from a thread, and where the disk
is full it raises from there and again when the interpreter ends.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboardX.summary import image, scalar


class EventFile:
    """A new event file in `directory`, in which TensorBoard forgets what other files have from `purge_step` on, if any.

    Every method raises OSError if it cannot write.
    """

    def __init__(self, directory: Path, purge_step: int | None):
        directory.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names.
        self._file = RecordWriter(str(directory / f"events.out.tfevents.{time.time_ns()}.{os.getpid()}"))
        self._write(Event(step=purge_step or 0, file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one event for each scalar."""
        for name, value in scalars.items():
            self._write(Event(step=step, summary=scalar(name, value)))
        self._file.flush()

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """Adds a picture, uint8 [H, W, 3]."""
        self._write(Event(step=step, summary=image(name, pixels, dataformats="HWC")))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())
