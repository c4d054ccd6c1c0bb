"""The step at which a run stopped, kept on disk and run again to see what is not finite, and where."""

from __future__ import annotations

import dataclasses
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffusion_jax.training import sharding, subset
from diffusion_jax.training.checkpoints import CheckpointError, Checkpoints
from diffusion_jax.training.gradients import check_precision, make_gradients, prepare
from diffusion_jax.training.method import (
    WHOLE,
    AlternatingMethod,
    Batch,
    Method,
    by_part,
    pick,
    put,
    turns_of,
)
from diffusion_jax.training.state import Optimizers, TrainState
from diffusion_jax.training.step import whole_of

# In a run's work directory.
FOLDER = "replay"
# How many positions and groups a line lists.
_LISTED = 8
# Parts of a path that name a group of parameters.
_DEPTH = 2
# Between the loss and here, so of no interest to who looks for a fault.
_OWN_FILES = ("replay.py", "step.py", "gradients.py")


@dataclasses.dataclass(frozen=True)
class Replay:
    """Everything that a step depends on.

    Attributes:
      step: the number of updates up to it, itself included.
      state: before it; state.step is the number of steps before.
      batch: the whole one, on the mesh.
      key: the run's, from which the step derives its own.
    """

    step: int
    state: TrainState
    batch: Batch
    key: jax.Array


def save(workdir: Path, replay: Replay, batches: Any) -> None:
    """Writes WORKDIR/replay, in the place of an older one. `batches`: state of the data. All processes call it."""
    folder = workdir / FOLDER
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("the older replay is gone")
    tree = {"state": dataclasses.replace(replay.state, profiles=(), frozen=()), "batch": dict(replay.batch)}
    with Checkpoints(folder, max_to_keep=1) as checkpoints:
        checkpoints.save(replay.step, tree, batches, {"key": np.asarray(jax.random.key_data(replay.key)).tolist()})


def load(workdir: Path, state: TrainState, batch: Batch, averaged: str = WHOLE) -> Replay:
    """Reads WORKDIR/replay onto the shapes and shardings of `state`, of `sharding.sharded_shapes`, and of `batch`.

    The state comes without the averages of its `profiles`, on which no step depends. averaged: the part of the
    parameters that averages are kept of. Raises CheckpointError.
    """
    folder = workdir / FOLDER
    restored = None
    if folder.is_dir():
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), dict(batch))
        with Checkpoints(folder, max_to_keep=1) as checkpoints:
            restored = checkpoints.restore({"state": dataclasses.replace(state, frozen=()), "batch": shapes})
    if restored is None:
        raise CheckpointError(f"{folder}: there is nothing to replay; a run leaves it when its loss stops being finite")
    key = jax.random.wrap_key_data(jnp.asarray(restored.record["key"], jnp.uint32))
    frozen = subset.restore(workdir, state.frozen, averaged)
    return Replay(
        restored.step, dataclasses.replace(restored.state["state"], frozen=frozen), restored.state["batch"], key
    )


def diagnose(
    method: Method | AlternatingMethod,
    optimizer: Optimizers,
    mesh: Mesh,
    replay: Replay,
    *,
    accumulation_steps: int = 1,
    matmul_precision: str = "highest",
) -> Iterator[str]:
    """Runs the step again, without updating anything, and says line by line what is not finite.

    In the order of the computation: what went in, and of each turn the terms of the loss and their examples, the
    gradient and the updated parameters by group; then the operation that gave the first NaN, found by running one after
    the other.
    """
    check_precision(matmul_precision)
    turns = [turn for turn in turns_of(method) if int(replay.state.step) % turn.every == 0]
    shardings = sharding.state_shardings(mesh, replay.state.params)

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[Batch, list[Any]]:
        params, opt_state, found = state.params, state.opt_state, []
        with jax.default_matmul_precision(matmul_precision):
            key = jax.random.fold_in(key, state.step)
            batch = prepare(method, mesh, state.method_state, batch, key)
            for turn in turns:
                gradients = make_gradients(turn.loss, mesh, pick(shardings, turn.part), accumulation_steps)
                trained, moments = pick(params, turn.part), pick(opt_state, turn.part)
                whole = whole_of(params, turn.part, state.frozen)
                grads, sums, metrics = gradients(trained, whole, batch, key, state.step)
                updates, moments = by_part(optimizer)[turn.part].update(grads, moments, trained)
                updated = optax.apply_updates(trained, updates)
                found.append((sums["loss"], metrics, grads, updated))
                params, opt_state = put(params, turn.part, updated), put(opt_state, turn.part, moments)
        return batch, found

    def counted(*inputs: Any) -> Any:
        prepared, found = step(*inputs)
        return prepared, [(loss, metrics, _bad_counts(grads), _bad_counts(new)) for loss, metrics, grads, new in found]

    arguments = (replay.state, replay.batch, replay.key)
    yield f"step {replay.step} again, from the state after {int(replay.state.step)} steps"
    inputs = {"batch": dict(replay.batch), "parameters": replay.state.params, "optimizer": replay.state.opt_state}
    for name, tree in inputs.items():
        yield from _groups(f"{name} (input)", tree, jax.jit(_bad_counts)(tree))

    with jax.debug_nans(False):
        prepared, found = jax.device_get(jax.jit(counted, out_shardings=sharding.replicated(mesh))(*arguments))
    is_finite = True
    for turn, (loss, metrics, bad_grads, bad_params) in zip(turns, found, strict=True):
        of_turn = f"{turn.name}: " if turn.name else ""
        value = float(loss[0] / loss[1])
        yield f"{of_turn}loss {value}"
        position = np.asarray(prepared["position"])
        for name, (values, weights) in metrics.items():
            yield from _examples(f"{of_turn}{name}", np.asarray(values), np.asarray(weights), position)
        params = pick(replay.state.params, turn.part)
        yield from _groups(f"{of_turn}gradient", params, bad_grads)
        if not any(jax.tree.leaves(bad_grads)):
            yield from _groups(f"{of_turn}updated parameters", params, bad_params)
        is_finite &= bool(np.isfinite(value)) and not any(jax.tree.leaves((bad_grads, bad_params)))
    if is_finite:
        yield "everything is finite: the failure does not repeat on these devices"
    elif jax.process_count() == 1:
        yield _first_bad_value(jax.jit(lambda *inputs: step(*inputs)[1]), arguments)


def _bad_counts(tree: Any) -> Any:
    """The number of values of each array that are not finite."""
    return jax.tree.map(lambda leaf: jnp.sum(~jnp.isfinite(leaf)), tree)


def _groups(title: str, tree: Any, bad_counts: Any) -> Iterator[str]:
    """A line for each group of arrays, by the first parts of their paths, that holds what is not finite."""
    groups: dict[str, list[int]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), bad in zip(leaves, jax.tree.leaves(bad_counts), strict=True):
        name = jax.tree_util.keystr(path[:_DEPTH], simple=True, separator="/")
        total = groups.setdefault(name, [0, 0])
        total[0] += int(bad)
        total[1] += leaf.size
    hurt = {name: (bad, size) for name, (bad, size) in groups.items() if bad}
    if not hurt:
        yield f"{title}: finite"
        return
    yield f"{title}: not finite in {len(hurt)} of {len(groups)} groups"
    for name, (bad, size) in list(hurt.items())[:_LISTED]:
        yield f"  {name}: {bad} of {size}"
    if len(hurt) > _LISTED:
        yield f"  and {len(hurt) - _LISTED} more"


def _examples(name: str, values: np.ndarray, weights: np.ndarray, position: np.ndarray) -> Iterator[str]:
    bad = ~np.isfinite(values) & (np.broadcast_to(weights, values.shape) != 0)
    if not bad.any():
        return
    line = f"{name}: {bad.sum()} of {bad.size} values are not finite"
    if bad.shape == position.shape:
        places = position[bad].tolist()
        line += f", of the examples {', '.join(map(str, places[:_LISTED]))}" + (" ..." if len(places) > _LISTED else "")
    yield line


def _first_bad_value(run: Any, arguments: tuple[Any, ...]) -> str:
    """The operation that gave the first NaN, or else the first infinity, and the line of code that asked for it."""
    for watching in (jax.debug_nans, jax.debug_infs):
        try:
            with watching(True):
                jax.block_until_ready(run(*arguments))
        except FloatingPointError as error:
            said = str(error).strip().splitlines()[0].rstrip(".")
            here = [f for f in traceback.extract_tb(error.__traceback__) if _is_ours(f.filename)]
            place = f" at {here[-1].filename}:{here[-1].lineno}, {here[-1].line}" if here else ""
            return f"first: {said}{place}"
    return "first: unknown, because operations one after the other give finite values"


def _is_ours(path: str) -> bool:
    return "site-packages" not in path and not path.startswith("<") and Path(path).name not in _OWN_FILES
