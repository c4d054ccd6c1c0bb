"""Checkpoint folders: ``config.json`` beside one .safetensors file, or several with an index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diffusion_jax import readers
from diffusion_jax.readers import one_line


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; one line that says why."""


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError, in one line."""
    try:
        return readers.read_object(path)
    except readers.ReadError as error:
        raise CheckpointError(str(error)) from None


def read_config(directory: Path) -> dict[str, Any]:
    """The folder's config.json."""
    path = directory / "config.json"
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder; it must hold config.json and .safetensors weights")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a model folder holds config.json and .safetensors weights")
    return read_object(path)


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


class TensorFile:
    """A .safetensors file, open; tensors are read when they are asked for.

    Raises CheckpointError if it is none.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            self._file = safe_open(path, framework="numpy")
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except (SafetensorError, OSError) as error:
            raise self._unreadable(error) from None

    def __enter__(self) -> "TensorFile":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of everything in it."""
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._names()}

    def tensors(self, prefix: str = "") -> dict[str, np.ndarray]:
        """The tensors whose names begin with the prefix, by the rest of the name, in the dtypes of the file."""
        try:
            return {
                name.removeprefix(prefix): self._file.get_tensor(name)
                for name in self._names()
                if name.startswith(prefix)
            }
        except (SafetensorError, OSError, TypeError, AttributeError) as error:
            raise self._unreadable(error) from None

    def _names(self) -> list[str]:
        return list(self._file.keys())

    def _unreadable(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self._path}: not a readable .safetensors file ({one_line(error)})")


def read_tensors(directory: Path, stem: str, variant: str | None = None) -> dict[str, np.ndarray]:
    """All tensors of the folder by name, in the dtypes of the file (bfloat16 included).

    Looks for ``stem.safetensors``, then for the shards named by ``stem.safetensors.index.json``, then for the only
    weights there are. With a variant ("fp16"): ``stem.fp16.safetensors``, ``stem.safetensors.index.fp16.json``, and
    nothing else.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in _weight_files(directory, stem, variant):
        with TensorFile(path) as file:
            tensors.update(file.tensors())
    return tensors


def write_tensors(directory: Path, stem: str, tensors: Mapping[str, np.ndarray]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    # safetensors stores the memory as it lies: a transposed view would be written in the wrong order
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    # readers of PyTorch files ask for this entry
    save_file(contiguous, directory / f"{stem}.safetensors", metadata={"format": "pt"})


def _weight_files(directory: Path, stem: str, variant: str | None) -> list[Path]:
    single = directory / (f"{stem}.safetensors" if variant is None else f"{stem}.{variant}.safetensors")
    if single.is_file():
        return [single]
    ending = "index.json" if variant is None else f"index.{variant}.json"
    index = directory / f"{stem}.safetensors.{ending}"
    if index.is_file():
        return _shards(index)
    found = sorted(directory.glob("*.safetensors")) if variant is None else []
    if len(found) == 1:
        return found
    indices = sorted(directory.glob("*.safetensors.index*.json")) if variant is None else []
    if len(indices) == 1:
        return _shards(indices[0])
    listing = ", ".join(path.name for path in sorted(directory.glob("*.safetensors*"))) or "none"
    raise CheckpointError(f"{directory}: no {single.name} (.safetensors files there: {listing})")


def _shards(index: Path) -> list[Path]:
    try:
        shards = sorted(set(read_object(index)["weight_map"].values()))
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not an index with a weight_map ({one_line(repr(error))})") from None
    missing = [shard for shard in shards if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(f"{index.parent}: {index.name} names {', '.join(missing)}, which are not there")
    return [index.parent / shard for shard in shards]
