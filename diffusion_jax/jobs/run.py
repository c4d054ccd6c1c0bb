"""Runs jobs in order and says whether all that they promise is there."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import jax

from diffusion_jax.config import ConfigError, Experiment
from diffusion_jax.data.sources.image_folder import counted
from diffusion_jax.jobs import evaluate, lock, records, replay, report, sample, train
from diffusion_jax.jobs.session import Session
from diffusion_jax.training.distributed import leaving_if_one_is_lost, wait_for_all
from diffusion_jax.training.interruption import RESTART, exit_code, restarting_on_warnings
from diffusion_jax.training.logging import say
from diffusion_jax.training.maintenance import MaintenanceWatch

JOBS = {
    "train": train.train,
    "sample": sample.sample,
    "evaluate": evaluate.evaluate,
    "report": report.report,
    "replay": replay.replay,
}
# What each job must have left for the exit code to be 0.
PRODUCTS = {
    "train": ("config.json", "checkpoints", "metrics.jsonl"),
    "sample": ("samples.png", "sampling.gif"),
    "evaluate": ("evaluation.json",),
    "report": ("report.html",),
    "replay": ("replay",),
}

# Those of them that are folders.
FOLDERS = {"checkpoints", "replay"}
READS_DATA = {"train", "sample", "evaluate"}


def run(config: Experiment, workdir: Path, modes: tuple[str, ...], command: str) -> int:
    """Runs the jobs named by `modes` on one work directory and returns the exit code.

    Raises ValueError, one line for the user, for bad input.
    """
    begun = time.monotonic()
    if config.debug:
        _debug()
    _check_workdir(workdir)
    session = Session(config, workdir, command)
    begins = "train" in modes or (workdir / "checkpoints").exists()  # the other jobs need a run that was begun
    if begins and READS_DATA & set(modes):  # data that are not there are said before config.json takes their name
        say(_described(session))
    jobs = {**JOBS, **session.method.jobs}
    with contextlib.ExitStack() as stack:
        if begins:
            session.make_workdir()
            stack.enter_context(lock.held(session.workdir))
            _clear_parts(session.workdir)
            session.write_config()
        stack.enter_context(restarting_on_warnings())
        stack.enter_context(MaintenanceWatch())
        for mode in modes:
            with leaving_if_one_is_lost():
                interrupted = jobs[mode](session)
            if interrupted is not None:
                code = exit_code(interrupted)
                asks = ", and asks to be started again" if code == RESTART else ""
                say(f"stopped by {interrupted.name}{asks}; the same command resumes")
                return code
            wait_for_all(f"the end of {mode}")
    if jax.process_index() != 0:  # everything but checkpoints is written by process 0
        return 0
    missing = [name for mode in modes for name in PRODUCTS[mode] if not _present(session.workdir / name)]
    if missing:
        print(f"diffusion_jax: {session.workdir} lacks {', '.join(missing)}", file=sys.stderr)
        return 1
    print(f"done in {time.monotonic() - begun:.0f} s: {session.workdir}", file=sys.stderr)
    return 0


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
    for name in {name for names in PRODUCTS.values() for name in names}:
        path = workdir / name
        if path.exists() and path.is_dir() != (name in FOLDERS):
            kinds = ("a folder", "a file")
            there, wanted = kinds if path.is_dir() else kinds[::-1]
            raise ConfigError(f"{path} is {there}, where the run has {wanted}; move it, or name another --workdir")


def _clear_parts(workdir: Path) -> None:
    """Takes away what a killed command has left of files that it was writing."""
    if jax.process_index() == 0:
        for name in ("config.json", "report.html", "samples.npz", *records.MADE_BY):
            part = workdir / f".{name}.part"
            if part.is_file():
                part.unlink(missing_ok=True)


def _debug() -> None:
    """The first NaN that a program returns raises, and GPUs add in one order; before anything has run on a device."""
    jax.config.update("jax_debug_nans", True)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()


def _present(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file() and path.stat().st_size > 0
