"""Hostile files are refused in one line, and nothing of them runs or grows."""

import builtins
import collections
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_jax import readers
from tests.readers.test_read import FILES, FIXTURES
from tests.readers.torch_writer import Call, Storage, stand_in, zipped


@pytest.fixture
def torch(monkeypatch):
    return stand_in(monkeypatch)


def refusal(folder, data):
    path = folder / "file.pth"
    path.write_bytes(data)
    with pytest.raises(readers.ReadError) as caught:
        readers.read_tensors(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < len(str(path)) + 300
    return message


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("call", "named"),
    [
        (Call(os.system, "touch HACKED"), f"{os.name}.system"),
        (Call(builtins.eval, "open('HACKED', 'w')"), "eval"),
        (Call(getattr, {}, "get"), "getattr"),
        (Call(np.load, "x.npy"), "load"),
        (Call(__import__, "os"), "__import__"),
    ],
)
def test_calls_of_anything_else_are_refused_by_name(tmp_path, monkeypatch, protocol, call, named):
    monkeypatch.chdir(tmp_path)
    plain = pickle.dumps({"w": np.zeros(2), "x": call}, protocol=protocol)
    assert "forbidden global" in refusal(tmp_path, plain) and named in refusal(tmp_path, plain)
    assert "forbidden global" in refusal(tmp_path, zipped([call]))
    legacy = (FIXTURES / "legacy.pth").read_bytes()
    header = legacy[: legacy.index(b"}q\x00(X\x07\x00\x00\x00float32")]
    assert header.count(b"\x80\x02") == 4, "the objects come after three other pickles"
    assert "forbidden global" in refusal(tmp_path, header[:-2] + pickle.dumps([call], protocol=2))
    assert not (tmp_path / "HACKED").exists()


def test_a_forbidden_name_need_not_be_called(tmp_path):
    assert "forbidden global" in refusal(tmp_path, pickle.dumps({"f": os.system}))
    long_name = b"\x80\x02cos\n" + b"x" * 5000 + b"\n."
    assert "forbidden global" in refusal(tmp_path, long_name)


def test_allowed_calls_with_other_arguments(tmp_path, torch):
    rebuild, array = torch.rebuild_tensor_v2, np.zeros(2).__reduce__()[0]
    odd = {
        "arguments that PyTorch does not write": Call(rebuild, b"bytes", 0, (1,), (1,), False, None),
        "arguments that do not fit": Call(rebuild, 0),
        "not a tensor": Call(torch.rebuild_parameter, [1.0], True, None),
        "something else than bytes": Call(torch.load_from_bytes, "text"),
        "legacy layout": Call(torch.load_from_bytes, pickle.dumps(1)),
        "something else than pairs": Call(collections.OrderedDict, "abc"),
        "something else than a list": Call(set, {"a": 1}),
        "without a class name": Call(torch.reconstruct_persistent_obj, {"state": {}}),
        "without a state": Call(torch.reconstruct_persistent_obj, {"class_name": "Net", "module_src": "x"}),
        "that NumPy does not write": Call(array, np.ndarray, (10**12,), b"b"),
        "a call of numpy.ndarray": Call(np.ndarray, (10**12,)),
        "not a plain number": Call(np.dtype, "O"),
        "which is not a plain": Call(np.dtype, "f4,f4"),
    }
    for says, call in odd.items():
        assert says in refusal(tmp_path, pickle.dumps([call], protocol=2)), says


def test_states_cannot_reach_what_they_are_not_for(tmp_path, torch):
    array = np.zeros(2).__reduce__()[0]
    numpy_array = (array, np.ndarray, (0,), b"b")
    states = {
        "in 8 bytes, where it needs 4": Call(*numpy_array, state=(1, (1,), np.dtype("f4"), False, b"12345678")),
        "where it needs 8000000000000": Call(*numpy_array, state=(1, (10**12,), np.dtype("f8"), False, b"")),
        "arguments that NumPy does not write": Call(*numpy_array, state=(1, (-1, -1), np.dtype("f4"), False, b"1234")),
        "a state that NumPy does not write": Call(*numpy_array, state={"__class__": 1}),
        "data type with a state": Call(np.dtype, "f4", False, True, state={"names": ("a",)}),
    }
    for says, call in states.items():
        assert says in refusal(tmp_path, pickle.dumps([call], protocol=2)), says
    onto_global = b"\x80\x02ccollections\nOrderedDict\n}X\x01\x00\x00\x00aK\x01sb."
    assert "a state" in refusal(tmp_path, onto_global)
    assert not hasattr(collections.OrderedDict, "a")


FOUR = np.arange(4, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "says"),
    [
        (0, (5,), (1,), "beyond its storage of 4 numbers"),
        (1, (2, 2), (2, 1), "beyond its storage"),
        (0, (2,), (10**18,), "beyond its storage"),
        (0, (10**9, 10**9), (0, 0), "more elements than its storage"),
        (-1, (2,), (1,), "arguments that PyTorch does not write"),
        (3, (2,), (-1,), "arguments that PyTorch does not write"),
        (0, (2,), (1, 1), "arguments that PyTorch does not write"),
        (0.0, (2,), (1,), "arguments that PyTorch does not write"),
        (0, (1,) * 40, (1,) * 40, "arguments that PyTorch does not write"),
        (0, (0, 10**30), (1, 1), "an array that cannot be"),
        (0, (1, 2), (10**30, 1), "an array that cannot be"),
        (0, (10**5000, 2), (1, 1), "a broken pickle"),
    ],
)
def test_tensors_stay_inside_of_their_storage(tmp_path, torch, offset, shape, strides, says):
    view = Call(torch.rebuild_tensor_v2, Storage(), offset, shape, strides, False, None)
    assert says in refusal(tmp_path, zipped({"w": view}, torch, s0=FOUR))


def test_a_view_that_fits_is_read(tmp_path, torch):
    view = Call(torch.rebuild_tensor_v2, Storage(), 1, (2,), (2,), False, None)
    (tmp_path / "x.pt").write_bytes(zipped({"w": view}, torch, s0=FOUR))
    np.testing.assert_array_equal(readers.read_tensors(tmp_path / "x.pt")["w"], [1, 3])


@pytest.mark.parametrize(
    ("storage", "data", "says"),
    [
        (Storage(), FOUR[:-1], "a storage of 15 bytes, where 4 numbers need 16"),
        (Storage(count=10**15), FOUR, "a storage of 16 bytes"),
        (Storage(count=-4), FOUR, "description is broken"),
        (Storage(key="../../secret"), FOUR, "no entry 'x/data/../../secret'"),
        (Storage("QuantizedStorage"), FOUR, "forbidden global 'torch.QuantizedStorage'"),
        (Storage(extra=(("view", 0, 4),)), FOUR, "not a whole storage"),
    ],
)
def test_storages_are_what_they_say(tmp_path, torch, storage, data, says):
    view = Call(torch.rebuild_tensor_v2, storage, 0, (4,), (1,), False, None)
    assert says in refusal(tmp_path, zipped({"w": view}, torch, s0=data))


def test_structures_that_contain_themselves(tmp_path):
    loop = []
    loop.append({"again": loop})
    assert "contains itself" in refusal(tmp_path, pickle.dumps(loop))
    nested = b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."
    assert "nested deeper" in refusal(tmp_path, nested)


def test_lists_shared_by_lists_do_not_multiply(tmp_path):
    laughs = [np.zeros(1)]
    for _ in range(40):
        laughs = [laughs, laughs]
    assert "more than 1000000 entries" in refusal(tmp_path, pickle.dumps(laughs))


def test_zip_bombs(tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w.npy", bytes(1 << 24))
    assert "that declares 16777216 bytes" in refusal(tmp_path, file.getvalue())

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w.npy", b"x" * 100)
    # the size in the directory at the end, which is the one that counts
    data = file.getvalue()
    place = data.index(b"PK\x01\x02")
    lying = data[: place + 24] + (1 << 30).to_bytes(4, "little") + data[place + 28 :]
    assert "that declares 1073741824 bytes" in refusal(tmp_path, lying)


def test_arrays_that_declare_more_than_there_is(tmp_path):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"shape": (10**12,), "fortran_order": False, "descr": "<f8"})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as npz:
        npz.writestr("w.npy", file.getvalue())
    assert "float64 in 0 bytes" in refusal(tmp_path, archive.getvalue())


@given(
    st.sampled_from(sorted(FILES)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=8)
)
def test_damaged_files_are_read_or_refused(tmp_path_factory, name, changes):
    data = bytearray((FIXTURES / name).read_bytes())
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    path = tmp_path_factory.mktemp("damaged", numbered=True) / "file"
    path.write_bytes(data)
    try:
        readers.read_tensors(path)
    except readers.ReadError as error:
        assert "\n" not in str(error)
