"""Finds out by content what a file is, and reads its tensors."""

import io
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from safetensors import safe_open

from diffusion_jax.readers import allowed, torch_files
from diffusion_jax.readers.errors import ReadError, decoding, one_line
from diffusion_jax.readers.graph_def import read_constants
from diffusion_jax.readers.pickle_machine import resolve, run

_FORMATS = "PyTorch (zip, legacy, TorchScript), pickle of arrays, .npz, .safetensors, frozen TensorFlow graph"
# The levels at which a module of PyTorch keeps its tensors and its parts; their names do not count in a state dict.
_MODULE_LEVELS = ("_parameters", "_buffers", "_modules")
_NODE_LIMIT = 1_000_000
# characters of a message behind the name of the file: shapes and names come from the file, and may be of any length
_LONGEST = 250


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """All tensors of a file by name, whatever its format, without running anything that is in it.

    The format is found by content: PyTorch's .pth and .pt in the zip and the legacy layout, TorchScript archives,
    pickles of NumPy arrays or of tensors (jax-fid, EDM), .npz, .safetensors, and frozen TensorFlow graphs. Names of
    nested dictionaries and modules are joined by "."; within a module they are those of its state dict. A lone tensor
    is named "tensor". What is not a tensor is left out (:func:`read_tree` has it).

    Returns:
      Name -> array in the dtype of the file, except bfloat16, which becomes float32. Arrays may be read-only, and
      views of one another.

    Raises:
      ReadError: in one line: no such file, an unknown format, a broken or a hostile file.
    """
    tree = read_tree(path)
    try:
        tensors = dict(_named_arrays(tree))
    except ReadError as error:
        raise ReadError(f"{path}: {one_line(error, _LONGEST)}") from None
    if not tensors:
        raise ReadError(f"{path}: holds no tensors")
    return tensors


def read_tree(path: str | Path) -> Any:
    """The content of a file as plain dictionaries, lists, tuples, scalars, strings and NumPy arrays.

    Objects become dictionaries of their attributes with the name of their class under "__class__". Networks in pickles
    of EDM and StyleGAN keep the arguments that they were made with under "_init_args" and "_init_kwargs".

    Raises:
      ReadError: as :func:`read_tensors`.
    """
    path = Path(path)
    try:
        with decoding(None, "file of tensors"):
            size = path.stat().st_size
            with path.open("rb") as file:
                if not size:
                    raise ReadError("is empty")
                return _read(path, file, size)
    except ReadError as error:
        raise ReadError(f"{path}: {one_line(error, _LONGEST)}") from None


def _read(path: Path, file: IO[bytes], size: int) -> Any:
    start = file.read(16)
    file.seek(0)
    if start.startswith(b"PK\x03\x04"):
        return _read_archive(file, size)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size - 8:
        return _read_safetensors(path)
    if start.startswith(b"\x1f\x8b"):
        raise ReadError("is a gzip archive; unpack it, and name the file inside")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        stream: Any = mapped
        if start.startswith(torch_files.LEGACY_START):
            return torch_files.read_legacy(stream)
        if start[0] == 0x80 or start[:1] in b"(]}cl":
            return resolve(run(stream, allowed.find))
    if start[0] == 0x0A:
        return read_constants(memoryview(file.read()))
    raise ReadError(f"is not of a format that is read: {_FORMATS}")


def _read_archive(file: IO[bytes], size: int) -> Any:
    with decoding(None, "zip archive"), torch_files.checked_zip(file, size) as archive:
        names = archive.namelist()
        if names and all(name.endswith(".npy") for name in names):
            return {name.removesuffix(".npy"): _read_npy(archive.read(name)) for name in names}
        return torch_files.read_zip(archive)


def _read_npy(data: bytes) -> np.ndarray:
    """An array whose header says no more than there is."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read_header(stream)
    body = memoryview(data)[stream.tell() :]
    if dtype.hasobject:
        raise ReadError("an array of Python objects")
    if any(size < 0 for size in shape) or int(np.prod(shape, dtype=object)) * dtype.itemsize != len(body):
        raise ReadError(f"an array {list(shape)} of {dtype} in {len(body)} bytes")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    with decoding(None, ".safetensors file"), safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return {name: _widened(tensor) for name, tensor in tensors.items()}


def _widened(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32) if tensor.dtype.name == "bfloat16" else tensor


def _named_arrays(tree: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a tree in order, with their paths joined by "."."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), tree)]
    for _ in range(_NODE_LIMIT):
        if not waiting:
            return
        path, node = waiting.pop()
        if isinstance(node, np.ndarray):
            yield ".".join(path) or "tensor", node
        elif isinstance(node, dict):
            waiting += reversed([(path + level, child) for level, child in _children(node)])
        elif isinstance(node, (list, tuple)):
            waiting += reversed([((*path, str(index)), child) for index, child in enumerate(node)])
    # a few shared lists in shared lists can stand for any number of names
    raise ReadError(f"holds more than {_NODE_LIMIT} entries")


def _children(node: dict[Any, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The parts of a dictionary or module, each with what it adds to the name."""
    for key, child in node.items():
        if "__class__" not in node:
            yield (str(key),), child
        elif key in _MODULE_LEVELS:
            yield (), child
        elif not str(key).startswith("_") or isinstance(child, np.ndarray):
            yield (str(key),), child
