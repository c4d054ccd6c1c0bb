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

from diffusion_jax.training import sharding
from diffusion_jax.training.checkpoints import CheckpointError, Checkpoints
from diffusion_jax.training.method import Batch, Method
from diffusion_jax.training.state import TrainState
from diffusion_jax.training.step import make_gradients

# In a run's work directory.
FOLDER = "replay"
# How many positions and groups a line lists.
_LISTED = 8
# Parts of a path that name a group of parameters.
_DEPTH = 2


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
    tree = {"state": dataclasses.replace(replay.state, profiles=()), "batch": dict(replay.batch)}
    with Checkpoints(folder, max_to_keep=1) as checkpoints:
        checkpoints.save(replay.step, tree, batches, {"key": np.asarray(jax.random.key_data(replay.key)).tolist()})


def load(workdir: Path, state: TrainState, batch: Batch) -> Replay:
    """Reads WORKDIR/replay onto the shapes and shardings of `state`, of `sharding.sharded_shapes`, and of `batch`.

    The state comes without the averages of its `profiles`, on which no step depends. Raises CheckpointError.
    """
    folder = workdir / FOLDER
    restored = None
    if folder.is_dir():
        shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for name, x in batch.items()}
        with Checkpoints(folder, max_to_keep=1) as checkpoints:
            restored = checkpoints.restore({"state": state, "batch": shapes})
    if restored is None:
        raise CheckpointError(f"{folder}: there is nothing to replay; a run leaves it when its loss stops being finite")
    key = jax.random.wrap_key_data(jnp.asarray(restored.record["key"], jnp.uint32))
    return Replay(restored.step, restored.state["state"], restored.state["batch"], key)


def diagnose(
    method: Method,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    replay: Replay,
    *,
    accumulation_steps: int = 1,
    matmul_precision: str = "highest",
) -> Iterator[str]:
    """Runs the step again, without updating anything, and says line by line what is not finite.

    In the order of the computation: what went in, the terms of the loss and their examples, the gradient and the
    updated parameters by group, and the operation that gave the first NaN, found by running one after the other.
    """
    gradients = make_gradients(
        method,
        mesh,
        sharding.state_shardings(mesh, replay.state.params),
        accumulation_steps=accumulation_steps,
        matmul_precision=matmul_precision,
    )

    def step(state: TrainState, batch: Batch, key: jax.Array) -> Any:
        grads, sums, prepared, metrics = gradients(state, batch, key)
        updates, _ = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return sums, prepared, metrics, _bad_counts(grads), _bad_counts(params)

    arguments = (replay.state, replay.batch, replay.key)
    yield f"step {replay.step} again, from the state after {int(replay.state.step)} steps"
    inputs = {"batch": dict(replay.batch), "parameters": replay.state.params, "optimizer": replay.state.opt_state}
    for name, tree in inputs.items():
        yield from _groups(f"{name} (input)", tree, jax.jit(_bad_counts)(tree))

    run = jax.jit(step, out_shardings=sharding.replicated(mesh))
    with jax.debug_nans(False):
        sums, prepared, metrics, bad_grads, bad_params = jax.device_get(run(*arguments))
    loss = float(sums["loss"][0] / sums["loss"][1])
    yield f"loss {loss}"
    position = np.asarray(prepared["position"])
    for name, (values, weights) in metrics.items():
        yield from _examples(name, np.asarray(values), np.asarray(weights), position)
    yield from _groups("gradient", replay.state.params, bad_grads)
    if not any(jax.tree.leaves(bad_grads)):
        yield from _groups("updated parameters", replay.state.params, bad_params)
    if np.isfinite(loss) and not any(jax.tree.leaves((bad_grads, bad_params))):
        yield "everything is finite: the failure does not repeat on these devices"
    elif jax.process_count() == 1:
        yield _first_bad_value(jax.jit(lambda *inputs: gradients(*inputs)[:2]), arguments)


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
    return "site-packages" not in path and not path.startswith("<") and Path(path).name not in ("replay.py", "step.py")
