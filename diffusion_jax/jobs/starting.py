"""What a run begins with if config.init_from names it: parameters of another run, of a hub folder or of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from diffusion_jax import hub
from diffusion_jax.config import ConfigError
from diffusion_jax.config.section import errors
from diffusion_jax.jobs.session import Session
from diffusion_jax.training import loop, sharding, subset
from diffusion_jax.training.checkpoints import newest_step
from diffusion_jax.training.logging import count_parameters, say
from diffusion_jax.training.method import drawn_with, pick, put

# How many names a line lists of each kind.
_LISTED = 5


def check(session: Session) -> None:
    """Raises ConfigError for parameters that cannot be trained or begun with, before anything is written."""
    with errors("config"):
        subset.split(session.trained.all_shapes, session.config.training.trainable)
    session.beginning = start(session)


def start(session: Session) -> loop.Start | None:
    """What the loop begins with in the place of new parameters; None without config.init_from, or where a run resumes.

    Parameters are taken by name and shape; what was taken, what is new and what was left is said. Raises ConfigError,
    before anything is compiled, where there is no such source or nothing in it fits.
    """
    source = session.config.init_from
    if source is None or newest_step(session.workdir / "checkpoints"):
        return None
    found = subset.flat(_open(session, source))
    own, part = subset.flat(session.trained.shapes), drawn_with(session.model)
    taken = {name: found[name] for name in own if name in found and found[name].shape == own[name].shape}
    if not taken:
        raise ConfigError(
            f"config.init_from is {source!r}, but none of its {len(found)} arrays has the name and shape of one here; "
            f"they are such as {_some(found)}, and here such as {_some(own)}"
        )
    say(_told(source, own, found, taken))

    def begin(params: Any) -> Any:
        leaves = subset.flat(pick(params, part))
        for name, value in taken.items():
            leaves[name] = jax.device_put(jax.numpy.asarray(value, leaves[name].dtype), leaves[name].sharding)
        return put(params, part, subset.nested(leaves))

    return begin


def _told(source: str, own: Mapping[str, Any], found: Mapping[str, Any], taken: Mapping[str, Any]) -> str:
    new = {name: leaf for name, leaf in own.items() if name not in taken}
    other = [name for name in new if name in found]
    left = [name for name in found if name not in own]
    line = f"init_from {source}: took {len(taken)} of {len(own)} arrays ({count_parameters(taken):,} parameters)"
    if fresh := [name for name in new if name not in other]:
        line += f"; {len(fresh)} are new, as it has none of the name: {_some(fresh)}"
    if other:
        shapes = [f"{name} {tuple(found[name].shape)} there, {tuple(own[name].shape)} here" for name in other]
        line += f"; {len(other)} are new, as its shapes are others: {_some(shapes)}"
    return line + (f"; left {len(left)} of it: {_some(left)}" if left else "")


def _some(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _open(session: Session, source: str) -> Mapping[str, Any]:
    """The parameters of a run, as its checkpoint has them, or of what `hub.load` opens; behind a colon their part."""
    path = Path(source).expanduser().absolute()
    part = None
    if not path.exists() and ":" in source:
        source, _, part = source.rpartition(":")
        path = Path(source).expanduser().absolute()
    try:
        if (path / "checkpoints").is_dir():
            shapes = subset.nested(subset.stored(path))
            return subset.restore_averaged(path, path / "checkpoints", sharding.sharded_shapes(session.mesh, shapes))[1]
        return hub.load(path if path.exists() else source, part=part)[1]
    except ValueError as error:
        raise ConfigError(f"config.init_from is {session.config.init_from!r}: {error}") from error
