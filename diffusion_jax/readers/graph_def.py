"""The constants of a frozen TensorFlow graph (GraphDef, .pb), read from the wire format of protocol buffers.

Field numbers are those of tensorflow/core/framework: GraphDef.node = 1; NodeDef.name = 1, op = 2, attr = 5 (a map
entry of key = 1 and value = 2); AttrValue.tensor = 8; TensorProto.dtype = 1, tensor_shape = 2, tensor_content = 4,
float_val = 5, double_val = 6, int_val = 7, int64_val = 10; TensorShapeProto.dim = 2 with size = 1.
"""

import math
from collections.abc import Iterator

import numpy as np

from diffusion_jax.readers.errors import ReadError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# DataType -> NumPy's type and the field of values that are not in tensor_content; text and the like are skipped
_TYPES = {1: ("<f4", 5), 2: ("<f8", 6), 3: ("<i4", 7), 9: ("<i8", 10)}
# One value may stand for a whole tensor, up to this many elements.
_BROADCAST_LIMIT = 1 << 24

Field = tuple[int, int, int, memoryview]


def read_constants(data: memoryview) -> dict[str, np.ndarray]:
    """The numeric Const nodes of the graph by name.

    Raises:
      ReadError: bytes that are not a GraphDef, or one without constants.
    """
    constants: dict[str, np.ndarray] = {}
    for number, wire, _, node in _fields(data):
        if (number, wire) != (1, _BYTES):
            continue
        name, operation, tensor = _node(node)
        if operation == "Const" and tensor is not None:
            array = _tensor(tensor)
            if array is not None:
                constants[name] = array
    if not constants:
        raise ReadError("a TensorFlow graph without numeric constants; it must be a frozen one")
    return constants


def _fields(data: memoryview) -> Iterator[Field]:
    """(field number, wire type, value of a number, bytes of anything longer) of a message, in order."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        value, start = 0, place
        if wire == _VARINT:
            value, place = _varint(data, place)
        elif wire in (_FIXED64, _FIXED32):
            place += 8 if wire == _FIXED64 else 4
        elif wire == _BYTES:
            length, start = _varint(data, place)
            place = start + length
        else:
            raise ReadError(f"not a TensorFlow graph (wire type {wire})")
        if place > len(data) or not number:
            raise ReadError("not a TensorFlow graph, or one that is cut off")
        yield number, wire, value, data[start:place]


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            raise ReadError("not a TensorFlow graph, or one that is cut off")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ReadError("not a TensorFlow graph (a number of more than ten bytes)")


def _signed(value: int) -> int:
    """Negative numbers are written as their 64-bit complement."""
    return value - (1 << 64) if value >> 63 else value


def _node(node: memoryview) -> tuple[str, str, memoryview | None]:
    """(name, operation, the TensorProto of its attribute "value")"""
    name = operation = ""
    tensor = None
    for number, wire, _, content in _fields(node):
        if wire != _BYTES:
            continue
        if number == 1:
            name = _text(content)
        elif number == 2:
            operation = _text(content)
        elif number == 5:
            entry = {key: part for key, kind, _, part in _fields(content) if kind == _BYTES}
            if _text(entry.get(1, memoryview(b""))) == "value" and 2 in entry:
                tensor = next((part for key, kind, _, part in _fields(entry[2]) if (key, kind) == (8, _BYTES)), None)
    return name, operation, tensor


def _tensor(tensor: memoryview) -> np.ndarray | None:
    """The array of a TensorProto; None for types that are not numbers."""
    fields = list(_fields(tensor))
    kind = next((value for number, wire, value, _ in fields if (number, wire) == (1, _VARINT)), 0)
    if kind not in _TYPES:
        return None
    dtype, values_field = np.dtype(_TYPES[kind][0]), _TYPES[kind][1]
    shape: tuple[int, ...] = ()
    content, values = None, []
    for number, wire, value, part in fields:
        if (number, wire) == (2, _BYTES):
            shape = tuple(_dimension(dim) for key, sort, _, dim in _fields(part) if (key, sort) == (2, _BYTES))
        elif (number, wire) == (4, _BYTES):
            content = part
        elif number == values_field:
            values.append(_values(wire, value, part, dtype))
    count = math.prod(shape)
    if len(shape) > 32 or any(size < 0 for size in shape):
        raise ReadError(f"a constant of the shape {list(shape)}")
    if content is not None:
        if len(content) != count * dtype.itemsize:
            raise ReadError(f"a constant {list(shape)} of {dtype} in {len(content)} bytes")
        return np.frombuffer(content, dtype).reshape(shape)
    array = np.concatenate(values) if values else np.zeros(0, dtype)
    if len(array) == 1 and count <= _BROADCAST_LIMIT:
        return np.broadcast_to(array, (count,)).reshape(shape)
    if len(array) != count:
        raise ReadError(f"a constant {list(shape)} of {len(array)} values")
    return array.reshape(shape)


def _dimension(dim: memoryview) -> int:
    return _signed(next((value for number, wire, value, _ in _fields(dim) if (number, wire) == (1, _VARINT)), 0))


def _values(wire: int, value: int, part: memoryview, dtype: np.dtype) -> np.ndarray:
    """The values of one field, packed or alone."""
    if wire == _VARINT:
        numbers = [value]
    elif dtype.kind == "i":
        numbers, place = [], 0
        while place < len(part):
            number, place = _varint(part, place)
            numbers.append(number)
    else:
        if len(part) % dtype.itemsize:
            raise ReadError("a constant whose values are cut off")
        return np.frombuffer(part, dtype)
    return np.array([_signed(number) for number in numbers], np.int64).astype(dtype)


def _text(content: memoryview) -> str:
    return bytes(content).decode("utf-8", "replace")
