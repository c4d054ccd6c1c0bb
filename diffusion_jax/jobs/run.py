"""Runs jobs in order and says whether all that they promise is there."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

from diffusion_jax.config import ConfigError, Experiment
from diffusion_jax.data.sources.image_folder import counted
from diffusion_jax.jobs import lock, records
from diffusion_jax.jobs.job import Job, imported
from diffusion_jax.jobs.session import Session
from diffusion_jax.jobs.table import JOBS, files
from diffusion_jax.training.distributed import leaving_if_one_is_lost, wait_for_all
from diffusion_jax.training.interruption import RESTART, exit_code, restarting_on_warnings
from diffusion_jax.training.logging import say
from diffusion_jax.training.maintenance import MaintenanceWatch


def run(config: Experiment, workdir: Path, modes: tuple[str, ...], command: str) -> int:
    """Runs the jobs named by `modes` on one work directory and returns the exit code.

    Raises ValueError, one line for the user, for bad input.
    """
    begun, jobs = time.monotonic(), [JOBS[mode] for mode in modes]
    if config.debug:
        _debug()
    _check_workdir(workdir)
    session = Session(config, workdir, command)
    begins = "train" in modes or (workdir / "checkpoints").exists()  # the other jobs need a run that was begun
    if begins and any(
        job.reads_data for job in jobs
    ):  # data that are not there are said before config.json takes their name
        say(_described(session))
    for job in jobs:
        if job.check is not None:
            imported(job.check)(session)
    with contextlib.ExitStack() as stack:
        if begins:
            session.record.make()
            stack.enter_context(lock.held(session.workdir))
            _clear_parts(session.workdir)
            session.record.write_config(session.config)
        stack.enter_context(restarting_on_warnings())
        stack.enter_context(MaintenanceWatch())
        for job in jobs:
            records.require(session.workdir, job)
            with leaving_if_one_is_lost():
                interrupted = _function(session, job)(session)
            if interrupted is not None:
                code = exit_code(interrupted)
                asks = ", and asks to be started again" if code == RESTART else ""
                say(f"stopped by {interrupted.name}{asks}; the same command resumes")
                return code
            wait_for_all(f"the end of {job.name}")
    if jax.process_index() != 0:  # everything but checkpoints is written by process 0
        return 0
    missing = [name for job in jobs for name in job.leaves if not _present(session.workdir / name)]
    if missing:
        print(f"diffusion_jax: {session.workdir} lacks {', '.join(missing)}", file=sys.stderr)
        return 1
    print(f"done in {time.monotonic() - begun:.0f} s: {session.workdir}", file=sys.stderr)
    return 0


def _function(session: Session, job: Job) -> Callable[[Session], signal.Signals | None]:
    """What the job does; some methods have their own."""
    assert job.function is not None  # the others are commands of their own
    return session.method.jobs.get(job.name) or imported(job.function)


def _described(session: Session) -> str:
    """What was found of the data, in a line."""
    train, test = session.train_source, session.test_source
    classes = f", of {train.num_classes} classes" if train.num_classes is not None else ", without classes"
    passed_over = getattr(train, "passed_over", {})
    others = f"; passed over: {counted(passed_over)}" if passed_over else ""
    return f"{len(train):,} images to train on and {len(test):,} held out{classes}{others}"


def _check_workdir(workdir: Path) -> None:
    """Raises ConfigError where a run could not leave its files: found now, it would be missed after training."""
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError:
        raise ConfigError(f"--workdir {os.fsencode(workdir)!r} is not UTF-8, which checkpoints need") from None
    for name in {name for job in JOBS.values() for name in job.leaves}:
        path = workdir / name
        if path.exists() and path.is_dir() != name.endswith("/"):
            kinds = ("a folder", "a file")
            there, wanted = kinds if path.is_dir() else kinds[::-1]
            raise ConfigError(f"{path} is {there}, where the run has {wanted}; move it, or name another --workdir")


def _clear_parts(workdir: Path) -> None:
    """Takes away what a killed command has left of files that it was writing."""
    if jax.process_index() == 0:
        for name in files():
            part = workdir / f".{name}.part"
            if part.is_file():
                part.unlink(missing_ok=True)


def _debug() -> None:
    """The first NaN that a program returns raises, and GPUs add in one order; before anything has run on a device."""
    jax.config.update("jax_debug_nans", True)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


def _present(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0
