"""PyTorch's tensors in pickles: a storage, and a strided view of it that has to lie inside."""

import io
from typing import Any

import numpy as np

from diffusion_jax.readers.errors import ReadError
from diffusion_jax.readers.pickle_machine import Constructor, Global, Holder

# storage class -> the type of its numbers in the file
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
    "ComplexFloatStorage": "<c8",
    "ComplexDoubleStorage": "<c16",
}
_DTYPES = ("bfloat16", "bool", "complex64", "float16", "float32", "float64", "int16", "int32", "int64", "int8", "uint8")


class Storage(Holder):
    """Numbers in a row, which arrive after the tensors that look at them."""

    def __init__(self, kind: str, count: int):
        self.kind, self.count = kind, count
        self.numbers: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.count * np.dtype(STORAGES[self.kind]).itemsize

    def fill(self, data: bytes | memoryview) -> None:
        """Takes the bytes of the file; bfloat16 becomes float32, which holds it exactly."""
        if len(data) != self.nbytes:
            raise ReadError(f"a storage of {len(data)} bytes, where {self.count} numbers need {self.nbytes}")
        numbers = np.frombuffer(data, STORAGES[self.kind])
        if self.kind == "BFloat16Storage":
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        self.numbers = numbers

    def value(self) -> Any:
        if self.numbers is None:
            raise ReadError("a storage without data")
        return self.numbers


class Tensor(Holder):
    """A view of a storage, which no element may leave."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def value(self) -> Any:
        numbers = self.storage.value()
        if 0 in self.shape:
            return np.empty(self.shape, numbers.dtype)
        strides = tuple(stride * numbers.itemsize for stride in self.strides)
        return np.lib.stride_tricks.as_strided(numbers[self.offset :], self.shape, strides, writeable=False)


def storage_of(persistent_id: Any, storages: dict[str, Storage]) -> Storage:
    """The storage ('storage', type, key, location, count, ...) of a persistent id, one for each key."""
    fits = isinstance(persistent_id, tuple) and len(persistent_id) in (5, 6) and persistent_id[0] == "storage"
    if not fits or any(persistent_id[5:]):
        raise ReadError("a persistent id that is not a whole storage")
    _, kind, key, _, count = persistent_id[:5]
    if not (isinstance(kind, Global) and isinstance(key, str) and type(count) is int and count >= 0):
        raise ReadError("a storage whose description is broken")
    storage = storages.setdefault(key, Storage(kind.name, count))
    if (storage.kind, storage.count) != (kind.name, count) or kind.name not in STORAGES:
        raise ReadError(f"a storage {key[:40]!r} of the type {kind.name!r} that does not fit its other uses")
    return storage


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    """_rebuild_tensor and _rebuild_tensor_v2; gradients and hooks are ignored."""
    if not (isinstance(storage, Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        raise ReadError("a tensor with arguments that PyTorch does not write")
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in numbers):
        raise ReadError("a tensor with arguments that PyTorch does not write")
    count = 1
    for size in shape:
        count *= size
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if count and last >= storage.count:
        raise ReadError(f"a tensor {list(shape)} that reaches beyond its storage of {storage.count} numbers")
    if count > storage.count:  # repeated elements: a few bytes could ask for any amount of memory
        raise ReadError(f"a tensor {list(shape)} with more elements than its storage of {storage.count} numbers")
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise ReadError("a parameter that is not a tensor")
    return data


def _load_from_bytes(data: Any) -> Storage:
    """A storage in a plain pickle: a whole file of the legacy layout inside."""
    from diffusion_jax.readers.torch_files import read_legacy  # it reads pickles, and they may hold such storages

    if not isinstance(data, (bytes, bytearray)):
        raise ReadError("a storage made of something else than bytes")
    storage = read_legacy(io.BytesIO(data), nested=True)
    if not isinstance(storage, Storage):
        raise ReadError("a storage that is something else")
    return storage


def _shape(sizes: Any = ()) -> tuple[Any, ...]:
    if not isinstance(sizes, (tuple, list)):
        raise ReadError("a torch.Size of something else than numbers")
    return tuple(sizes)


def _device(*description: Any) -> str:
    return ":".join(str(part)[:20] for part in description)


def _typed_list(items: Any) -> Any:
    return items


def _tagged(value: Any, _: Any) -> Any:
    return value


def _not_called(*_: Any) -> Any:
    raise ReadError("a call of a type that PyTorch only names")


CONSTRUCTORS: dict[Global, Constructor] = {
    Global("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    Global("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    Global("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    Global("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    Global("torch.storage", "_load_from_bytes"): _load_from_bytes,
    Global("torch", "Size"): _shape,
    Global("torch", "device"): _device,
    Global("torch.jit._pickle", "restore_type_tag"): _tagged,
    **{Global("torch", name): _not_called for name in (*STORAGES, *_DTYPES)},
    **{Global("torch.jit._pickle", f"build_{kind}list"): _typed_list for kind in ("int", "double", "bool", "tensor")},
}
