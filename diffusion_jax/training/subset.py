"""The parameters that are trained, and those that stay as they are.

Patterns are those of a shell, over the names of a parameter joined by "/": "*attention*" or "decoder/*". Frozen
parameters are an argument of the compiled step, split over the devices as the others, and no checkpoint has them: they
are written once, to WORKDIR/frozen, and whoever restores parameters of the run gets them from there.
"""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import traverse_util
from jax.experimental import multihost_utils

from diffusion_jax.training import checkpoints
from diffusion_jax.training.checkpoints import Checkpoints
from diffusion_jax.training.method import WHOLE

# In a run's work directory.
FOLDER = "frozen"


def split(params: Any, patterns: Sequence[str]) -> tuple[Any, Any]:
    """(trained, frozen): the parameters that a pattern matches, and the others; without patterns (params, ()).

    Raises ValueError for a pattern that matches none.
    """
    if not patterns:
        return params, ()
    leaves = flat(params)
    for pattern in patterns:
        if not fnmatch.filter(leaves, pattern):
            some = ", ".join(list(leaves)[:4])
            raise ValueError(
                f"config.training.trainable has {pattern!r}, which matches no parameter; their names are such as {some}"
            )
    trained = {name: leaf for name, leaf in leaves.items() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}
    frozen = {name: leaf for name, leaf in leaves.items() if name not in trained}
    return nested(trained), nested(frozen) if frozen else ()


def merge(trained: Any, frozen: Any) -> Any:
    """All parameters again."""
    if isinstance(frozen, tuple):
        return trained
    return nested({**flat(trained), **flat(frozen)})


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Name, joined by "/" -> leaf of a nested dict."""
    return traverse_util.flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """What `flat` was given."""
    return traverse_util.unflatten_dict(leaves, sep="/")


def save(workdir: Path, frozen: Any, averaged: str) -> None:
    """Writes WORKDIR/frozen, in the place of an older one, or takes that away where nothing is frozen.

    averaged: the part of the parameters that averages are kept of. All processes call it.
    """
    folder = workdir / FOLDER
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("older frozen parameters are gone")
    if jax.tree.leaves(frozen):
        with Checkpoints(folder, max_to_keep=1) as written:
            written.save(0, _laid_out(frozen, averaged), None, {})


def restore(workdir: Path, target: Any, averaged: str) -> Any:
    """The frozen parameters of a run, onto shapes with shardings. Raises CheckpointError where they are not there."""
    if not jax.tree.leaves(target):
        return target
    shapes = _laid_out(target, averaged)
    found = {name: checkpoints.restore_at(workdir / FOLDER, 0, name, tree) for name, tree in shapes.items()}
    if averaged == WHOLE:
        return found[_DRAWN]
    return found.get(_OTHERS, {}) | ({averaged: found[_DRAWN]} if _DRAWN in found else {})


def restoring(workdir: Path, target: Any) -> tuple[Any, Any]:
    """(shapes of those parameters that checkpoints of a run hold, the frozen ones): together those of `target`.

    target: shapes with shardings of the parameters that are drawn with.
    """
    if not (workdir / FOLDER).is_dir():
        return target, ()
    frozen = {name.removeprefix(f"{_DRAWN}/") for name in checkpoints.arrays(workdir / FOLDER, f"{_DRAWN}/")}
    leaves = flat(target)
    held = {name: leaf for name, leaf in leaves.items() if name not in frozen}
    if len(held) == len(leaves):
        return target, ()
    shapes = nested({name: leaf for name, leaf in leaves.items() if name in frozen})
    return nested(held), checkpoints.restore_at(workdir / FOLDER, 0, _DRAWN, shapes)


def restore_averaged(workdir: Path, folder: Path, target: Any) -> tuple[int, Any]:
    """(step, averaged parameters) of the newest checkpoint in a folder of a run, with those that were not trained.

    Arguments and errors as in `checkpoints.restore_params`.
    """
    held, frozen = restoring(workdir, target)
    step, params = checkpoints.restore_params(folder, held)
    return step, merge(params, frozen)


def stored(workdir: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Name -> shape of all parameters that a run draws with. Raises CheckpointError where there is no checkpoint."""
    prefix = "ema_params/"
    found = checkpoints.arrays(workdir / "checkpoints", prefix)
    shapes = {name.removeprefix(prefix): shape for name, shape in found.items()}
    if (workdir / FOLDER).is_dir():
        frozen = checkpoints.arrays(workdir / FOLDER, f"{_DRAWN}/")
        shapes |= {name.removeprefix(f"{_DRAWN}/"): shape for name, shape in frozen.items()}
    return shapes


# What is drawn with stands apart from what only training needs.
_DRAWN, _OTHERS = "drawn", "others"


def _laid_out(frozen: Any, averaged: str) -> dict[str, Any]:
    if averaged == WHOLE:
        return {_DRAWN: frozen}
    others = {part: tree for part, tree in frozen.items() if part != averaged}
    found = {_DRAWN: frozen.get(averaged, {}), _OTHERS: others}
    return {name: tree for name, tree in found.items() if tree}
