"""Checkpoint folders: ``config.json`` beside one .safetensors file, or several with an index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; one line that says why."""


def read_config(directory: Path) -> dict[str, Any]:
    """The folder's config.json."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder; it must hold config.json and .safetensors weights")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a model folder holds config.json and .safetensors weights")
    try:
        config = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds a {type(config).__name__}; it must hold a JSON object")
    return config


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_tensors(directory: Path, stem: str) -> dict[str, np.ndarray]:
    """All tensors of the folder by name, in the dtypes of the file (bfloat16 included).

    Looks for ``stem.safetensors``, then for the shards named by ``stem.safetensors.index.json``, then for the
    only .safetensors file there is.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in _weight_files(directory, stem):
        try:
            with safe_open(path, framework="numpy") as file:
                tensors.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: not a readable .safetensors file ({error})") from None
    return tensors


def write_tensors(directory: Path, stem: str, tensors: Mapping[str, np.ndarray]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    # safetensors stores the memory as it lies: a transposed view would be written in the wrong order
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    # readers of PyTorch files ask for this entry
    save_file(contiguous, directory / f"{stem}.safetensors", metadata={"format": "pt"})


def _weight_files(directory: Path, stem: str) -> list[Path]:
    single = directory / f"{stem}.safetensors"
    if single.is_file():
        return [single]
    index = directory / f"{stem}.safetensors.index.json"
    if index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{index}: not an index with a weight_map ({error!r})") from None
        missing = [shard for shard in shards if not (directory / shard).is_file()]
        if missing:
            raise CheckpointError(f"{directory}: {index.name} names {', '.join(missing)}, which are not there")
        return [directory / shard for shard in shards]
    found = sorted(directory.glob("*.safetensors"))
    if len(found) != 1:
        listing = ", ".join(path.name for path in found) or "none"
        raise CheckpointError(f"{directory}: no {single.name} (.safetensors files there: {listing})")
    return found
