"""Snapshots of power-function averages on disk, and parameters of any width from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.training import checkpoints, subset
from diffusion_jax.training.checkpoints import CheckpointError, Checkpoints
from diffusion_jax.training.power_ema import Profile, check_width, coefficients

# In a run's work directory: one folder for each snapshot, named by its update.
FOLDER = "ema_snapshots"


class Snapshots:
    """Writes the snapshots of a run; used as a context, which ends when all are on disk."""

    def __init__(self, workdir: Path, sigma_rels: tuple[float, ...], step: int):
        """`step`: where the run continues. What an earlier process saved after it will be saved again."""
        self._sigma_rels = sigma_rels
        self._checkpoints = Checkpoints(workdir / FOLDER, max_to_keep=None)
        self._checkpoints.forget_after(step)

    def save(self, step: int, profiles: tuple[Any, ...]) -> None:
        """profiles: parameters, one tree for each width. The arrays may be donated at once."""
        named = {_name(i): profile for i, profile in enumerate(profiles)}
        self._checkpoints.save(step, named, None, {"sigma_rels": list(self._sigma_rels)})

    def __enter__(self) -> Snapshots:
        return self

    def __exit__(self, *error: Any) -> None:
        self._checkpoints.__exit__(*error)


def reconstruct(
    workdir: str | os.PathLike[str], sigma_rel: float, target: Any, step: int | None = None
) -> tuple[int, Any]:
    """(step, parameters) averaged with the profile of width sigma_rel over the first `step` updates of a run.

    The least-squares fit by the snapshots up to there (Karras et al. 2024, section 3.2), which are read one at a time.

    Args:
      workdir: of a run with config.posthoc_ema.snapshot_every.
      sigma_rel: from about 0.8 times the smallest tracked width to twice the largest the fit is good to a percent.
      target: a tree of jax.ShapeDtypeStruct with shardings, such as `sharding.sharded_shapes` gives.
      step: one with a snapshot; the newest by default.

    Raises:
      ValueError: a width that no profile has, or a step without a snapshot.
      CheckpointError: there are no snapshots, one cannot be read, or they are of another model.
    """
    check_width("sigma_rel", sigma_rel)
    folder = Path(workdir).absolute() / FOLDER
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: does not exist; a run keeps snapshots of its averages with config.posthoc_ema.snapshot_every"
        )
    records = checkpoints.records(folder)
    step = max(records) if step is None else step
    if step not in records:
        nearest = min(records, key=lambda at: abs(at - step))
        raise ValueError(f"step is {step}, but there is no snapshot of it in {folder}; the nearest is of {nearest}")
    places = [(at, i) for at, record in records.items() if at <= step for i in range(len(record["sigma_rels"]))]
    tracked = [Profile(at, records[at]["sigma_rels"][i]) for at, i in places]
    held, frozen = subset.restoring(Path(workdir).absolute(), target)
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), held)
    for (at, i), weight in zip(places, coefficients(tracked, Profile(step, sigma_rel)), strict=True):
        total = _add(total, checkpoints.restore_at(folder, at, _name(i), held), jnp.float32(weight))
    return step, subset.merge(total, frozen)


def _name(i: int) -> str:
    return f"profile_{i}"


@jax.jit
def _add(total: Any, tree: Any, weight: jax.Array) -> Any:
    return jax.tree.map(lambda a, b: (a + weight * b).astype(a.dtype), total, tree)
