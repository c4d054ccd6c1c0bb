"""How a side is started and asked: one JSON object a line, in and out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).resolve().parents[2]


class Workload(Protocol):
    """What a side has built."""

    def facts(self) -> dict[str, Any]:
        """Versions, hardware, compile_seconds and the like."""
        ...

    def run(self) -> float:
        """Does the work once and returns the seconds that it took."""
        ...

    def peak_bytes(self) -> int:
        """The most memory that was in use: of the device on a GPU, of the process on a CPU."""
        ...


class Side:
    """The parent's end of a side."""

    def __init__(self, python: str, module: str, arguments: list[str]):
        self._module = module
        self._process = subprocess.Popen(
            [python, "-m", module, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self._answer()

    def run(self) -> float:
        """Seconds of one round of work."""
        return self._ask("run")["seconds"]

    def peak_bytes(self) -> int:
        return self._ask("peak")["bytes"]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, what: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._module} ended with exit code {self._process.wait()}; its message is above")
        return json.loads(line)


def serve(build: Callable[[], Workload]) -> None:
    """The child's end: builds, tells the facts, and works when asked until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")
        answers.flush()

    workload = build()
    answer(workload.facts())
    for request in sys.stdin:
        if request.strip() == "run":
            answer({"seconds": workload.run()})
        else:
            answer({"bytes": workload.peak_bytes()})


def process_peak_bytes() -> int:
    """The most memory that this process had so far."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
