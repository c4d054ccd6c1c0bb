"""NumPy arrays in pickles: the calls that NumPy writes, made by hand and checked."""

import math
from typing import Any

import numpy as np

from diffusion_jax.readers.errors import ReadError
from diffusion_jax.readers.pickle_machine import Constructor, Global, Holder

# kinds of data: booleans, integers, floats, complex numbers, bytes and text; no objects, no fields
_KINDS = "biufcSU"


class DType(Holder):
    """numpy.dtype(code, align, copy), then a state whose second entry is the byte order."""

    def __init__(self, code: Any, *_: Any):
        try:
            self.dtype = np.dtype(code) if isinstance(code, str) else None
        except TypeError:
            self.dtype = None
        if self.dtype is None or self.dtype.kind not in _KINDS or self.dtype.fields or self.dtype.shape:
            raise ReadError(f"an array of the type {str(code)[:40]!r}, which is not a plain number or text")

    def build(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) >= 2 and state[1] in ("<", ">", "|", "=")):
            raise ReadError("a data type with a state that NumPy does not write")
        assert self.dtype is not None
        if self.dtype.byteorder != "|":
            self.dtype = self.dtype.newbyteorder(state[1])

    def value(self) -> Any:
        return str(self.dtype)


class Array(Holder):
    """An array whose data may come later, as the state (version, shape, dtype, is_fortran, data)."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def build(self, state: Any) -> None:
        if not (isinstance(state, tuple) and len(state) == 5):
            raise ReadError("an array with a state that NumPy does not write")
        _, shape, dtype, fortran, data = state
        self.array = from_bytes(data, dtype, shape, "F" if fortran else "C")

    def value(self) -> Any:
        if self.array is None:
            raise ReadError("an array without data")
        return self.array


def from_bytes(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """The array over these bytes, which must be exactly as many as it needs."""
    if isinstance(data, str):  # bytes in pickles of Python 2
        data = data.encode("latin-1")
    fits = isinstance(data, (bytes, bytearray)) and isinstance(dtype, DType) and isinstance(shape, tuple)
    if not fits or order not in ("C", "F") or not all(type(size) is int and size >= 0 for size in shape):
        raise ReadError("an array with arguments that NumPy does not write")
    assert dtype.dtype is not None
    wanted = math.prod(shape) * dtype.dtype.itemsize
    if wanted != len(data) or len(shape) > 32:
        raise ReadError(f"an array {list(shape)} of {dtype.dtype} in {len(data)} bytes, where it needs {wanted}")
    if not wanted:
        return np.empty(shape, dtype.dtype)
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _reconstruct(kind: Any, shape: Any, _: Any) -> Array:
    if kind != Global("numpy", "ndarray") or shape != (0,):
        raise ReadError("an array with arguments that NumPy does not write")
    return Array()


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> np.ndarray:
    return from_bytes(data, dtype, shape, order)


def _scalar(dtype: Any, data: Any) -> Any:
    return from_bytes(data, dtype, (), "C")[()]


def _encode(text: Any, encoding: Any) -> bytes:
    """_codecs.encode: how protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ReadError("text in an encoding other than latin1")
    return text.encode("latin-1")


def _bytes(*data: Any) -> bytes:
    """bytes and bytearray, as the old protocols write them: of bytes, or of nothing."""
    if data and not (len(data) == 1 and isinstance(data[0], (bytes, bytearray))):
        raise ReadError("bytes made of something else")
    return bytes(data[0]) if data else b""


def _not_called(*_: Any) -> Any:
    raise ReadError("a call of numpy.ndarray, which NumPy does not write")


CONSTRUCTORS: dict[Global, Constructor] = {
    Global("numpy", "ndarray"): _not_called,
    Global("numpy", "dtype"): DType,
    Global("_codecs", "encode"): _encode,
    Global("__builtin__", "bytearray"): _bytes,
    Global("__builtin__", "bytes"): _bytes,
    Global("builtins", "bytearray"): _bytes,
    Global("builtins", "bytes"): _bytes,
}
for _package in ("numpy.core", "numpy._core"):
    CONSTRUCTORS |= {
        Global(f"{_package}.multiarray", "_reconstruct"): _reconstruct,
        Global(f"{_package}.multiarray", "scalar"): _scalar,
        Global(f"{_package}.numeric", "_frombuffer"): _frombuffer,
    }
