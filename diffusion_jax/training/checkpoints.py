"""Checkpoints: the train state, the place in the data and what else a run continues from, or nothing at all.

A checkpoint is a folder DIR/<step> that Orbax commits atomically, written in the background. It holds the arrays
("state") and one JSON document ("run") with the state of the data iterator, the caller's own record, and the name,
shape, dtype and checksum of every array, so that a checkpoint of another model is told from a damaged one, and a
damaged one from a good one even where the file format would not notice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from diffusion_jax.training.silence import silence_orbax

T = TypeVar("T")

# How many names an error lists of each kind of difference.
_LISTED = 6


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, read or used; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held: arrays on the devices, the state of the data iterator, and the caller's record."""

    step: int
    state: Any
    batches: Any
    record: dict[str, Any]


class Checkpoints:
    """The checkpoints of a run in `directory`, the newest `max_to_keep` of them or all. All processes call it alike."""

    def __init__(self, directory: str | os.PathLike[str], max_to_keep: int | None):
        self.directory = Path(directory).absolute()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"{self.directory}: cannot be created: {error.strerror}") from error
        if not os.access(self.directory, os.W_OK):
            raise CheckpointError(f"{self.directory}: is read-only, so checkpoints cannot be written to it")
        _refuse_files(self.directory)
        self._manager = _manager(self.directory, max_to_keep=max_to_keep, cleanup_tmp_directories=True)

    def save(self, step: int, state: Any, batches: Any, record: dict[str, Any]) -> None:
        """Starts to write a checkpoint and returns; the arrays may be donated at once.

        Args:
          step: names the checkpoint.
          state: a tree of arrays.
          batches: the state of the data iterator, of JSON types, the same on every host.
          record: anything of JSON types.

        Raises:
          CheckpointError: this checkpoint, or the last one, which was still being written, could not be.
        """
        run = {"step": step, "batches": batches, "record": record, "arrays": _describe(state, _checksums(state))}
        with self._writing():
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), run=ocp.args.JsonSave(run)), force=True
            )

    def restore(self, target: Any) -> Restored | None:
        """The newest readable checkpoint, or None if there are none at all.

        A newer one that cannot be read is named in a warning and set aside as DIR/unreadable-<step>.

        Args:
          target: a tree of jax.ShapeDtypeStruct with shardings, such as `sharding.sharded_shapes` gives.

        Raises:
          CheckpointError: no checkpoint can be read, or the newest is of another model.
        """
        restored, unreadable = _restore_newest(self._manager, self.directory, "", target)
        if unreadable:
            if jax.process_index() == 0:
                for step in unreadable:
                    aside = self.directory / f"unreadable-{step}"
                    shutil.rmtree(aside, ignore_errors=True)
                    (self.directory / str(step)).rename(aside)
            if jax.process_count() > 1:
                multihost_utils.sync_global_devices("unreadable checkpoints are set aside")
            self._manager.reload()
        return restored

    def forget_after(self, step: int) -> None:
        """Deletes what was saved after `step`, by a run that now continues from there."""
        for later in self._manager.all_steps():
            if later > step:
                self._manager.delete(later)

    def close(self) -> None:
        """Waits until everything is on disk. Raises CheckpointError if something could not be written."""
        with self._writing():
            self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:  # the error on its way out says more than one about this
            with contextlib.suppress(CheckpointError):
                self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise CheckpointError(f"{self.directory}: a checkpoint could not be written: {_reason(error)}") from error


def restore_params(directory: str | os.PathLike[str], target: Any, name: str = "ema_params") -> tuple[int, Any]:
    """(step, parameters) of the newest readable checkpoint of a run, for those who only use them.

    Args:
      directory: the run's checkpoints.
      target: a tree of jax.ShapeDtypeStruct with shardings, such as `sharding.sharded_shapes` gives.
      name: "ema_params" or "params".

    Raises:
      CheckpointError: there is no checkpoint, none can be read, or it is of another model.
    """
    restored = None
    with _reader(directory) as (manager, directory):
        restored, _ = _restore_newest(manager, directory, f"{name}/", {name: target})
    assert restored is not None  # there are checkpoints, and if none can be read that was raised
    return restored.step, restored.state[name]


def newest_step(directory: str | os.PathLike[str]) -> int:
    """The step of the newest checkpoint by its folder's name, of which nothing is read; 0 where there is none."""
    names = (child.name for child in Path(directory).glob("*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def records(directory: str | os.PathLike[str]) -> dict[int, dict[str, Any]]:
    """step -> the caller's record, of every checkpoint, the oldest first.

    Raises CheckpointError if there is none or one cannot be read.
    """
    with _reader(directory) as (manager, directory):
        steps = sorted(manager.all_steps())
        return {step: _reading(directory, step, lambda step=step: _read_run(manager, step))["record"] for step in steps}


def arrays(directory: str | os.PathLike[str], prefix: str = "") -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays in the newest checkpoint whose names, joined by "/", begin with `prefix`.

    Raises CheckpointError if there is no checkpoint or it cannot be read.
    """
    with _reader(directory) as (manager, directory):
        step = max(manager.all_steps())
        stored = _reading(directory, step, lambda: _read_run(manager, step))["arrays"]
    return {
        name: jax.ShapeDtypeStruct(entry["shape"], entry["dtype"])
        for name, entry in stored.items()
        if name.startswith(prefix)
    }


def restore_at(directory: str | os.PathLike[str], step: int, name: str, target: Any) -> Any:
    """The part `name` of the checkpoint of a given step; arguments and errors as in `restore_params`."""
    with _reader(directory) as (manager, directory):
        restore = functools.partial(_restore_step, manager, directory, step, f"{name}/", {name: target})
        return _reading(directory, step, restore).state[name]


@contextlib.contextmanager
def _reader(directory: str | os.PathLike[str]) -> Iterator[tuple[ocp.CheckpointManager, Path]]:
    directory = Path(directory).absolute()
    if directory.is_dir():
        _refuse_files(directory)
        with _manager(directory, read_only=True, create=False, save_interval_steps=0) as manager:
            if manager.all_steps():
                yield manager, directory
                return
    raise CheckpointError(f"{directory}: there is no checkpoint; train first, or name the folder of a run")


def _refuse_files(directory: Path) -> None:
    """Raises CheckpointError for a file that has the name of a checkpoint's folder."""
    for child in directory.iterdir():
        if child.name.isdecimal() and not child.is_dir():
            raise CheckpointError(f"{child} is a file, where checkpoints are folders; take it away")


def _reading(directory: Path, step: int, read: Callable[[], T]) -> T:
    try:
        return read()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{directory / str(step)}: cannot be read: {_reason(error)}") from error


def _restore_newest(
    manager: ocp.CheckpointManager, directory: Path, prefix: str, target: Any
) -> tuple[Restored | None, list[int]]:
    """The newest readable checkpoint, reading only arrays whose names start with `prefix`, and the unreadable steps."""
    failures: dict[int, str] = {}
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            restored = _restore_step(manager, directory, step, prefix, target)
        except CheckpointError:
            raise
        except Exception as error:
            failures[step] = _reason(error)
            continue
        for failed, reason in failures.items():
            print(
                f"warning: checkpoint {directory / str(failed)} cannot be read ({reason}); using step {step}",
                file=sys.stderr,
            )
        return restored, list(failures)
    if failures:
        reasons = "; ".join(f"{step}: {reason}" for step, reason in failures.items())
        raise CheckpointError(f"{directory}: no checkpoint can be read ({reasons})")
    return None, []


def _restore_step(manager: ocp.CheckpointManager, directory: Path, step: int, prefix: str, target: Any) -> Restored:
    run = _read_run(manager, step)
    if (inside := run.get("step", step)) != step:
        raise CheckpointError(
            f"checkpoint {directory / str(step)} is that of step {inside}, renamed or copied; name it {inside}, "
            "or take it away"
        )
    stored = {name: entry for name, entry in run["arrays"].items() if name.startswith(prefix)}
    _check_same_model(directory / str(step), stored, _describe(target))
    arguments = ocp.args.PyTreeRestore(
        target,
        restore_args=ocp.checkpoint_utils.construct_restore_args(target),
        partial_restore=bool(prefix),
    )
    state = manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]
    checksums = _describe(state, _checksums(state))
    damaged = [name for name, entry in checksums.items() if entry != stored[name]]
    if damaged:
        raise OSError(f"the checksum of {_some(damaged)} is wrong")
    return Restored(step, state, run["batches"], run["record"])


def _read_run(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    return manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))["run"]


def _check_same_model(path: Path, stored: dict[str, Any], expected: dict[str, Any]) -> None:
    missing = [name for name in expected if name not in stored]
    left_over = [name for name in stored if name not in expected]
    changed = [
        f"{name} {_array(stored[name])} instead of {_array(entry)}"
        for name, entry in expected.items()
        if name in stored and _array(stored[name]) != _array(entry)
    ]
    differences = {"missing": missing, "left over": left_over, "different": changed}
    if any(differences.values()):
        listed = "; ".join(f"{kind}: {_some(names)}" for kind, names in differences.items() if names)
        raise CheckpointError(f"checkpoint {path} is of another model or optimizer: {listed}")


def _array(entry: dict[str, Any]) -> str:
    return f"{entry['dtype']}{entry['shape']}"


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def _describe(tree: Any, checksums: np.ndarray | None = None) -> dict[str, dict[str, Any]]:
    """name -> shape, dtype and, if given, checksum of every array."""
    described = {
        jax.tree_util.keystr(path, simple=True, separator="/"): {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    if checksums is not None:
        for entry, checksum in zip(described.values(), checksums.tolist(), strict=True):
            entry["checksum"] = checksum
    return described


def _checksums(tree: Any) -> np.ndarray:
    """The sum of each array's words modulo 2**32, uint32 [leaves]: the same however the array is sharded."""
    return np.asarray(_word_sums(jax.tree.leaves(tree)))


@jax.jit
def _word_sums(leaves: list[jax.Array]) -> jax.Array:
    words = {1: jnp.uint8, 2: jnp.uint16}
    sums = []
    for leaf in leaves:
        bits = jax.lax.bitcast_convert_type(leaf, words.get(leaf.dtype.itemsize, jnp.uint32))
        sums.append(jnp.sum(bits, dtype=jnp.uint32))
    return jnp.stack(sums)


def _reason(error: BaseException) -> str:
    """What the operating system said, or else the first line, shortened: TensorStore's errors run to pages."""
    text = str(error).strip()
    if said := re.search(r": ([^:]+) \[os_error_code=", text):
        return said[1]
    line = next(iter(text.splitlines()), "") or type(error).__name__
    return line if len(line) <= 200 else f"{line[:200]}..."


def _manager(directory: Path, **options: Any) -> ocp.CheckpointManager:
    silence_orbax()
    return ocp.CheckpointManager(directory, options=ocp.CheckpointManagerOptions(**options))
