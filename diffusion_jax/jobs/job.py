"""What a job is to the command: a record, of which one table holds all."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Job:
    """Something that --mode can ask for.

    Functions are named, "module:function" in `diffusion_jax.jobs`, and imported when they are run, so that a wrong flag
    is refused, and --help printed, without what only the work needs.

    Attributes:
      name: of the mode.
      help: what it does, in a line for --help.
      function: of the `Session` of a run; None for a job without a config. Returns the signal that ended it early, or
        None.
      command: of the rest of the command line, for a job with options of its own; None for a job that has none.
        Returns the exit code, and raises ValueError, in one line, for what cannot be.
      check: of the `Session`, before anything is written; raises ValueError, in one line, for what cannot be.
      reads_data: whether it opens the data of the run.
      needs: files of other jobs, which have to be there before.
      leaves: what has to be there after it for the exit code 0; folders end in a slash.
      writes: further files that it may write.
    """

    name: str
    help: str
    function: str | None = None
    command: str | None = None
    check: str | None = None
    reads_data: bool = False
    needs: tuple[str, ...] = ()
    leaves: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


def imported(function: str) -> Callable[..., Any]:
    """The function that a `Job` names."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)
