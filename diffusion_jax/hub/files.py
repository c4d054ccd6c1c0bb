"""Checkpoint folders: ``config.json`` beside one file of weights, or several with an index."""

import contextlib
import difflib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diffusion_jax import readers
from diffusion_jax.readers import decoding, few, one_line, reason

# Endings of weights: safetensors, and PyTorch's own, which are read where there are no others.
SAFE, PICKLED = ".safetensors", ".bin"
# Written beside weights by trainers, and none themselves.
NO_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")
# Where trainers keep the weights of a whole model.
STATE = "state_dict."
# characters of a message: values of settings may be of any length
LONGEST = 260
# What transformers calls the weights whose safetensors are "model".
PICKLED_STEMS = {"model": "pytorch_model"}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or does not fit; one line that says why."""


def refusal(error: Exception) -> str:
    """Why no network can be made of settings, in one line: what a ValueError says was written for the user."""
    if isinstance(error, ValueError):
        return one_line(error, LONGEST)
    return f"no network can be made of its settings ({type(error).__name__}: {one_line(error)})"


def nearest(name: object, known: Iterable[str]) -> str:
    """The three of many known names that are most like one that is unknown, and where all are listed."""
    choices = list(known)
    like = difflib.get_close_matches(name[:60], choices, 3, 0) if isinstance(name, str) else choices[:3]
    return f"{', '.join(like)} (docs/hub.md lists all)"


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
    write_json(directory / "config.json", config)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def check_writable(folder: Path) -> None:
    """Raises CheckpointError where files could not be written into a folder, without making anything."""
    try:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        is_folder = there.is_dir()
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be a folder ({reason(error)})") from None
    if not is_folder:
        raise CheckpointError(f"{folder}: {there} is a file; name a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise CheckpointError(f"{folder}: {there} cannot be written to")


class TensorFile:
    """A .safetensors file, open; tensors are read when they are asked for.

    Raises CheckpointError if it is none.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._decoding():
            self._file = safe_open(path, framework="numpy")

    def __enter__(self) -> "TensorFile":
        self._file.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.__exit__(*error)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of everything in it."""
        with self._decoding():
            return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._names()}

    def tensors(self, prefix: str = "") -> dict[str, np.ndarray]:
        """The tensors whose names begin with the prefix, by the rest of the name, in the dtypes of the file."""
        with self._decoding():
            return {
                name.removeprefix(prefix): self._file.get_tensor(name)
                for name in self._names()
                if name.startswith(prefix)
            }

    @property
    def metadata(self) -> dict[str, str]:
        """The texts of its header."""
        with self._decoding():
            return self._file.metadata() or {}

    def _names(self) -> list[str]:
        return list(self._file.keys())

    def _decoding(self) -> contextlib.AbstractContextManager[None]:
        return decoding(self.path, ".safetensors file", CheckpointError)


class PickledFile:
    """What :class:`TensorFile` is, of a PyTorch file: .bin, .ckpt, .pt, .pth. Nothing that is in it is run."""

    def __init__(self, path: Path):
        self.path = path
        try:
            tensors = readers.read_tensors(path)
        except readers.ReadError as error:
            raise CheckpointError(str(error)) from None
        # trainers put the weights beside their own state
        inside = {name.removeprefix(STATE): value for name, value in tensors.items() if name.startswith(STATE)}
        self._tensors = inside or tensors

    def __enter__(self) -> "PickledFile":
        return self

    def __exit__(self, *error: Any) -> None:
        self._tensors = {}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of everything in it."""
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def tensors(self, prefix: str = "") -> dict[str, np.ndarray]:
        """The tensors whose names begin with the prefix, by the rest of the name; bfloat16 is float32."""
        return {name.removeprefix(prefix): value for name, value in self._tensors.items() if name.startswith(prefix)}


def open_tensors(path: Path) -> TensorFile | PickledFile:
    """The file of weights, open, whichever of the two kinds it is by its name."""
    return TensorFile(path) if path.suffix == SAFE else PickledFile(path)


def read_tensors(directory: Path, stem: str, variant: str | None = None) -> dict[str, np.ndarray]:
    """All tensors of the folder by name, in the dtypes of the file (bfloat16 included).

    Looks for ``stem.safetensors``, then for the shards named by ``stem.safetensors.index.json``, then for the only
    safetensors there are. With a variant ("fp16"): ``stem.fp16.safetensors``, ``stem.safetensors.index.fp16.json``, and
    nothing else. Where a folder has no safetensors, PyTorch's ``stem.bin`` (``pytorch_model.bin``) is looked for in the
    same way; nothing that is in it is run.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in weight_files(directory, stem, variant):
        with open_tensors(path) as file:
            tensors.update(file.tensors())
    return tensors


def write_tensors(directory: Path, stem: str, tensors: Mapping[str, np.ndarray]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    # safetensors stores the memory as it lies: a transposed view would be written in the wrong order
    contiguous = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    path = directory / f"{stem}.safetensors"
    try:
        # readers of PyTorch files ask for this entry
        save_file(contiguous, path, metadata={"format": "pt"})
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be written ({reason(error)})") from None


def weight_files(directory: Path, stem: str, variant: str | None = None) -> list[Path]:
    """The files that :func:`read_tensors` reads. Raises CheckpointError where there are none, or not all."""
    for ending in (SAFE, PICKLED):
        name = PICKLED_STEMS.get(stem, stem) if ending == PICKLED else stem
        found = _named(directory, name, ending, variant)
        if found:
            return found
    wanted = f"{stem}{SAFE}" if variant is None else f"{stem}.{variant}{SAFE}"
    there = [path.name for ending in (SAFE, PICKLED) for path in sorted(directory.glob(f"*{ending}*"))]
    listing = few(there) if there else "none"
    raise CheckpointError(f"{directory}: no {wanted} (files of weights there: {listing})")


def _named(directory: Path, stem: str, ending: str, variant: str | None) -> list[Path]:
    """The weights with this ending, in one file or in shards; none where there are none."""
    single = directory / (f"{stem}{ending}" if variant is None else f"{stem}.{variant}{ending}")
    if single.is_file():
        return [single]
    index = directory / f"{stem}{ending}.{'index.json' if variant is None else f'index.{variant}.json'}"
    if index.is_file():
        return _shards(index)
    if variant is not None:
        return []
    only = [path for path in sorted(directory.glob(f"*{ending}")) if path.name not in NO_WEIGHTS]
    if len(only) == 1:
        return only
    indices = sorted(directory.glob(f"*{ending}.index*.json"))
    return _shards(indices[0]) if len(indices) == 1 else []


def _shards(index: Path) -> list[Path]:
    shards = read_object(index).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else []
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{index}: not an index with a weight_map to files of its folder")
    missing = [shard for shard in sorted(set(names)) if not (index.parent / shard).is_file()]
    if missing:
        raise CheckpointError(
            f"{index.parent}: {index.name} names {few(missing)}; {len(missing)} of {len(set(names))} are not there"
        )
    return [index.parent / shard for shard in sorted(set(names))]
