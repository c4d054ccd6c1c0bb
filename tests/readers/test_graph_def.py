"""Frozen TensorFlow graphs, written by protobuf from TensorFlow's own message types."""

import numpy as np
import pytest
from tensorboardX.proto import graph_pb2

from diffusion_jax import readers

FLOAT, DOUBLE, INT32, STRING, INT64 = 1, 2, 3, 7, 9
KERNEL = np.arange(24, dtype=np.float32).reshape(2, 3, 1, 4) - 5


def constant(graph, name, dtype, shape, **values):
    node = graph.node.add(name=name, op="Const", device="/cpu:0")
    node.attr["dtype"].type = dtype
    tensor = node.attr["value"].tensor
    tensor.dtype = dtype
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    for field, value in values.items():
        if field == "tensor_content":
            tensor.tensor_content = value
        else:
            getattr(tensor, field).extend(value)


def graph():
    graph = graph_pb2.GraphDef()
    graph.versions.producer = 8
    graph.node.add(name="ExpandDims", op="Placeholder")
    constant(graph, "conv/conv2d_params", FLOAT, KERNEL.shape, tensor_content=KERNEL.tobytes())
    constant(graph, "conv/batchnorm/gamma", FLOAT, (5,), float_val=[1.0])  # one value for all
    constant(graph, "conv/batchnorm/beta", FLOAT, (3,), float_val=[0.5, -1.0, 2.0])
    constant(graph, "shape", INT32, (2,), int_val=[-1, 2048])
    constant(graph, "large", INT64, (1,), int64_val=[-(2**40)])
    constant(graph, "double", DOUBLE, (), double_val=[1 / 3])
    constant(graph, "labels", STRING, (1,), string_val=[b"cat"])
    return graph


def written(folder, graph):
    (folder / "graph.pb").write_bytes(graph.SerializeToString())
    return folder / "graph.pb"


def test_constants(tmp_path):
    tensors = readers.read_tensors(written(tmp_path, graph()))
    expected = {
        "conv/conv2d_params": KERNEL,
        "conv/batchnorm/gamma": np.ones(5, np.float32),
        "conv/batchnorm/beta": np.array([0.5, -1.0, 2.0], np.float32),
        "shape": np.array([-1, 2048], np.int32),
        "large": np.array([-(2**40)]),
        "double": np.array(1 / 3),
    }
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("shape", "values", "says"),
    [
        ((4,), {"tensor_content": b"\0" * 12}, r"constant \[4\] of float32 in 12 bytes"),
        ((1 << 20, 1 << 20), {"float_val": [0.0]}, "of 1 values"),
        ((3,), {"float_val": [0.0, 1.0]}, "of 2 values"),
        ((-1, -1), {"float_val": [0.0]}, r"the shape \[-1, -1\]"),
    ],
)
def test_constants_that_lie_about_their_size(tmp_path, shape, values, says):
    graph = graph_pb2.GraphDef()
    constant(graph, "x", FLOAT, shape, **values)
    with pytest.raises(readers.ReadError, match=says):
        readers.read_tensors(written(tmp_path, graph))


def test_a_graph_that_is_cut_off_or_not_frozen(tmp_path):
    path = written(tmp_path, graph())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(readers.ReadError, match="cut off"):
        readers.read_tensors(path)
    variables = graph_pb2.GraphDef()
    variables.node.add(name="w", op="VariableV2")
    with pytest.raises(readers.ReadError, match="it must be a frozen one"):
        readers.read_tensors(written(tmp_path, variables))
