"""Weights as the papers' authors released them, to folders that :func:`diffusion_jax.hub.load` opens."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import readers
from diffusion_jax.hub import research
from diffusion_jax.hub.checkpoint import format_of, load, save
from diffusion_jax.hub.files import CheckpointError, write_config, write_tensors


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    settings: Mapping[str, Any] | None = None,
    format: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Reads a .pkl of EDM or EDM2, or a .pt of DDPM's port, improved-diffusion, guided-diffusion, DiT or SiT.

    Nothing in the file is run (:mod:`diffusion_jax.readers`), and no other framework is needed.

    Args:
      source: the file.
      destination: folder for config.json and the weights; made if missing.
      settings: arguments of the network that do not follow from the file, or overrule what does.
      format: layout of the folder, as for :func:`diffusion_jax.hub.save`; None keeps the names of the file.
      say: takes lines about the progress.

    Raises:
      CheckpointError: the file cannot be read, holds no such network, or does not say enough about it.
    """
    path, given = Path(source), dict(settings or {})
    say(f"reading {path}")
    try:
        config, tensors, what = _network(path, given)
    except readers.ReadError as error:
        raise CheckpointError(str(error)) from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    say(f"{what}: {len(tensors)} tensors, {sum(tensor.size for tensor in tensors.values()):,} numbers")
    directory = Path(destination)
    write_config(directory, config)
    write_tensors(directory, format_of(config, directory).stem, tensors)
    model, params = load(directory)
    if format is not None:
        save(model, params, directory, format=format)
        load(directory)
    say(f"wrote {directory}, a {type(model).__name__} that hub.load opens")


def _network(path: Path, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray], str]:
    """config.json and the tensors of the network in a file, and what it is."""
    stored = readers.read_tensors(path)
    if pickled := research.pickled_network(readers.read_tree(path)):
        name, config = pickled
        return _plain(config | given), _under(f"{name}.", stored), "EDM2" if "class_name" in config else "EDM"
    shapes = {name: tensor.shape for name, tensor in stored.items()}
    found = research.state_dict(shapes)
    if found is None:
        titles = ", ".join(kind.title for kind in research.KINDS)
        raise CheckpointError(
            f"holds no network of EDM, {titles}; its tensors begin with {', '.join(list(shapes)[:3])}"
        )
    kind, prefix = found
    tensors = _under(prefix, stored)
    config = kind.settings({name: tensor.shape for name, tensor in tensors.items()}, given, path.stem)
    return _plain(config), tensors, kind.title


def _under(prefix: str, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.item() if isinstance(value, np.generic) else value
