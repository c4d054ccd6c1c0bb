"""Shapes that no array can have, in the formats that state them: one line, and nothing is allocated."""

import json
import struct

import numpy as np
import pytest

from diffusion_jax import hub, readers

HUGE = 2**62


def refusal(path, read=readers.read_tensors):
    with pytest.raises((readers.ReadError, hub.CheckpointError)) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 300
    return message


def safetensors(path, shape, count, offsets=None):
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": offsets or [0, 4 * count]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * count))
    return path


@pytest.mark.parametrize(
    ("shape", "count"), [([1] * 100, 1), ([HUGE, HUGE], 1), ([0, HUGE, HUGE], 0), ([2**40], 1), ([3], 1)]
)
def test_safetensors(shape, count, tmp_path):
    path = safetensors(tmp_path / "w.safetensors", shape, count)
    assert "is no readable .safetensors file" in refusal(path)

    def tensors(path):
        with hub.files.TensorFile(path) as file:
            return file.tensors()

    assert "is no readable .safetensors file" in refusal(path, tensors)


def field(number, wire, content):
    return bytes([number << 3 | wire]) + content


def message(number, content):
    return field(number, 2, varint(len(content)) + content)


def varint(value):
    out = b""
    while value > 0x7F:
        out, value = out + bytes([value & 0x7F | 0x80]), value >> 7
    return out + bytes([value])


def graph(path, shape, values):
    """A frozen graph with one constant of int64 values."""
    dims = b"".join(message(2, field(1, 0, varint(size))) for size in shape)
    tensor = field(1, 0, varint(9)) + message(2, dims) + b"".join(field(10, 0, varint(value)) for value in values)
    node = message(1, b"w") + message(2, b"Const") + message(5, message(1, b"value") + message(2, message(8, tensor)))
    path.write_bytes(message(1, node))
    return path


def test_graphs(tmp_path):
    np.testing.assert_array_equal(
        readers.read_tensors(graph(tmp_path / "right.pb", (3,), (1, 2, 2**64 - 5)))["w"], [1, 2, -5]
    )
    for shape, values in (
        ((1,) * 100, (1,)),
        ((0, HUGE, HUGE), ()),
        ((HUGE, HUGE), (1,)),
        ((2**25,), (1,)),
        ((2,), (2**69, 2**69)),
        ((3,), (1, 2)),
    ):
        refusal(graph(tmp_path / "wrong.pb", shape, values))
