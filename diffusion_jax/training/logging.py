"""What a run tells: metrics.jsonl, TensorBoard events, progress on the console, the table of parameters."""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np
import tqdm
from clu import parameter_overview as clu_parameter_overview

from diffusion_jax.readers.documents import row_of
from diffusion_jax.training.events import EventFile

# Seconds between lines where the console is a file or a pipe.
LINE_SECONDS = 10.0


class WriteError(ValueError):
    """A file of the run that cannot be written; the message is one line for the user."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses into a WriteError that names the file."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_file(path: Path, text: str) -> None:
    """Writes a text file whole or not at all, from process 0. Raises WriteError."""
    if jax.process_index() == 0:
        partial = path.with_name(f"{path.name}.tmp")
        with writing(path):
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)


class MetricsWriter:
    """Writes scalars to `workdir`/metrics.jsonl, one object a line with its "step", and as TensorBoard events.

    Only process 0 writes. A run that resumes at `start_step` continues the file: what lies beyond that step will be
    computed again, so it is dropped, as is a line that a kill cut short. Raises WriteError if it cannot write.
    """

    def __init__(self, workdir: str | os.PathLike[str], start_step: int = 0):
        self._file: FileIO | None = None
        if jax.process_index() != 0:
            return
        self._path = Path(workdir) / "metrics.jsonl"
        _drop_lines_after(self._path, start_step)
        with writing(self._path):
            # Unbuffered: a line is out at once, and what did not fit on the disk is not tried again by close().
            self._file = self._path.open("ab", buffering=0)
        self._tensorboard = Path(workdir) / "tensorboard"
        with writing(self._tensorboard):
            self._events = EventFile(self._tensorboard, purge_step=start_step + 1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Appends one line; a value that is not finite is written as null, which JSON can hold."""
        if self._file is None:
            return
        line = {name: _shortest(value) if math.isfinite(value) else None for name, value in scalars.items()}
        with writing(self._path):
            self._file.write(json.dumps({"step": step, **line}, allow_nan=False).encode() + b"\n")
        with writing(self._tensorboard):
            self._events.write(step, scalars)

    def picture(self, step: int, name: str, pixels: np.ndarray | None) -> None:
        """Adds a picture, uint8 [H, W, 3], to TensorBoard's events; None adds nothing."""
        if self._file is not None and pixels is not None:
            with writing(self._tensorboard):
                self._events.picture(step, name, pixels)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            with writing(self._tensorboard):
                self._events.close()

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # the error on its way out says more than one about this
            with contextlib.suppress(WriteError):
                self.close()


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32, which is all that the values have."""
    return float(str(np.float32(value)))


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    kept: dict[int, str] = {}
    for line in text.split("\n")[:-1]:  # what follows the last line break was cut short
        row = row_of(line)
        if row is not None and row["step"] <= step:
            kept[row["step"]] = json.dumps(row)  # one line a step: the newest
    whole = "".join(f"{line}\n" for line in kept.values())
    if whole != text:
        write_file(path, whole)


class Progress:
    """Steps and images a second, time left and the loss: a bar on a terminal, a line every LINE_SECONDS elsewhere.

    Only process 0 writes.
    """

    def __init__(self, start_step: int, num_steps: int, batch_size: int, stream: TextIO | None = None):
        self._stream = sys.stderr if stream is None else stream
        self._start_step, self._step, self._num_steps = start_step, start_step, num_steps
        self._batch_size = batch_size
        self._start = self._last_line = time.monotonic()
        self._loss = ""
        self._quiet = jax.process_index() != 0
        self._bar = None
        if self._stream.isatty() and not self._quiet:
            self._bar = tqdm.tqdm(
                total=num_steps, initial=start_step, unit="step", file=self._stream, dynamic_ncols=True
            )

    def update(self, step: int, loss: float | None = None) -> None:
        """`step` updates were made; `loss` is the newest average, where there is a new one."""
        if loss is not None:
            self._loss = f", loss {loss:.4g}"
        if self._bar is not None:
            rate = (step - self._start_step) / max(time.monotonic() - self._start, 1e-9)
            self._bar.set_postfix_str(f"{rate * self._batch_size:.0f} images/s{self._loss}", refresh=False)
            self._bar.update(step - self._step)
        self._step = step
        if not self._quiet and self._bar is None and time.monotonic() - self._last_line >= LINE_SECONDS:
            self._last_line = time.monotonic()
            print(self.line(), file=self._stream, flush=True)

    def line(self) -> str:
        """The state of the run in one line."""
        rate = (self._step - self._start_step) / max(time.monotonic() - self._start, 1e-9)
        left = datetime.timedelta(seconds=round((self._num_steps - self._step) / rate)) if rate else "?"
        return (
            f"step {self._step}/{self._num_steps}{self._loss}, {rate:.3g} steps/s, "
            f"{rate * self._batch_size:.0f} images/s, {left} left"
        )

    def close(self) -> None:
        """Ends the bar, or writes a last line."""
        if self._bar is not None:
            self._bar.close()
        elif not self._quiet and self._step > self._start_step:
            print(self.line(), file=self._stream, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parameter_overview(params: Any) -> str:
    """A table of name, shape, dtype, size and sharding of every parameter, with the totals under it (clu)."""
    return clu_parameter_overview.get_parameter_overview(params, include_stats="sharding")


def count_parameters(params: Any) -> int:
    """The number of trained scalars."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def say(message: str) -> None:
    """One line on the console, from process 0."""
    if jax.process_index() == 0:
        print(message, file=sys.stderr, flush=True)
