"""Files of every format, written by the framework that they belong to, give their tensors by name."""

import gzip
import io
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax import readers
from tests.readers.expected import EXPECTED, MODULE

# written by write_fixtures.py, which says how to write them anew
FIXTURES = Path(__file__).parent / "fixtures"
FILES = {
    "zip.pth": EXPECTED,
    "legacy.pth": EXPECTED,
    "script.pt": MODULE,
    "checkpoint.pth": {f"model.{name}": array for name, array in MODULE.items()},
    "persistent.pkl": {f"ema.{name}": array for name, array in MODULE.items()},
}


def check(path, expected):
    tensors = readers.read_tensors(path)
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert tensors[name].dtype == array.dtype and tensors[name].shape == array.shape, name
        np.testing.assert_array_equal(tensors[name], array, err_msg=name)


@pytest.mark.parametrize("name", FILES)
def test_files_of_pytorch(name):
    check(FIXTURES / name, FILES[name])


def test_files_of_the_pytorch_that_is_installed(tmp_path):
    pytest.importorskip("torch")
    from tests.readers.write_fixtures import write

    write(tmp_path)
    for name, expected in FILES.items():
        check(tmp_path / name, expected)


def test_the_format_is_found_by_content_not_by_the_name(tmp_path):
    disguised = tmp_path / "weights.npz"
    disguised.write_bytes((FIXTURES / "legacy.pth").read_bytes())
    check(disguised, EXPECTED)


def test_trees_keep_what_is_not_a_tensor():
    checkpoint = readers.read_tree(FIXTURES / "checkpoint.pth")
    assert (checkpoint["epoch"], checkpoint["lr"], checkpoint["best"], checkpoint["shape"]) == (3, 1e-3, None, (2, 3))


def test_persistent_objects_keep_the_arguments_that_they_were_made_with():
    network = readers.read_tree(FIXTURES / "persistent.pkl")["ema"]
    assert network["__class__"] == "Network"
    assert network["_init_args"] == (2,)
    assert network["_init_kwargs"] == {"name": "network", "sizes": [8, 16]}
    assert "module_src" not in network


NESTED = {
    "Mixed_5b": {"conv": {"kernel": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}},
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "swapped": np.arange(3, dtype=">i4"),
    "list": [np.float64(3.0) * np.ones(2), np.arange(2, dtype=np.uint8)],
    "empty": np.zeros((0, 2)),
    "flag": np.array([True]),
}
NAMES = ["Mixed_5b.conv.kernel", "fortran", "swapped", "list.0", "list.1", "empty", "flag"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_numpy_arrays(tmp_path, protocol):
    path = tmp_path / "arrays.pickle"
    path.write_bytes(pickle.dumps(NESTED | {"count": np.int64(7), "name": "x", "set": {1}}, protocol=protocol))
    tensors = readers.read_tensors(path)
    assert list(tensors) == NAMES
    np.testing.assert_array_equal(tensors["Mixed_5b.conv.kernel"], NESTED["Mixed_5b"]["conv"]["kernel"])
    for name in ("fortran", "swapped", "empty", "flag"):
        np.testing.assert_array_equal(tensors[name], NESTED[name])
    np.testing.assert_array_equal(tensors["list.0"], [3.0, 3.0])
    tree = readers.read_tree(path)
    assert (tree["count"], tree["name"], tree["set"]) == (7, "x", [1])


def test_pickles_that_name_the_modules_of_older_numpys(tmp_path):
    path = tmp_path / "old.pickle"
    path.write_bytes(pickle.dumps(np.arange(3), protocol=2).replace(b"numpy._core.", b"numpy.core."))
    np.testing.assert_array_equal(readers.read_tensors(path)["tensor"], np.arange(3))


ARRAYS = {
    "a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "b": np.array(2.5),
    "text": np.array(["abc", "d"]),
}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "x.npz", **ARRAYS)
    check(tmp_path / "x.npz", ARRAYS)


def test_safetensors_in_bfloat16_are_widened(tmp_path):
    exact = np.array([[1.0, -3.140625]], np.float32)
    arrays = {"w": np.arange(4, dtype=np.float16), "wide": exact.astype(ml_dtypes.bfloat16)}
    save_file(arrays, tmp_path / "x.safetensors")
    check(tmp_path / "x.safetensors", {"w": arrays["w"], "wide": exact})


def no_file(folder):
    return folder / "nothing.pth"


def empty(folder):
    (folder / "empty").touch()
    return folder / "empty"


def text(folder):
    (folder / "page.pth").write_text("<html>not found</html>")
    return folder / "page.pth"


def packed(folder):
    (folder / "x.tgz").write_bytes(gzip.compress(b"x" * 100))
    return folder / "x.tgz"


def other_zip(folder):
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("image.png", b"x")
    return folder / "x.zip"


def no_tensors(folder):
    (folder / "x.pkl").write_bytes(pickle.dumps({"a": 1}))
    return folder / "x.pkl"


def objects(folder):
    np.savez(folder / "objects.npz", a=np.array([None, "x"], object))
    return folder / "objects.npz"


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (no_file, "nothing.pth: no such file"),
        (empty, "empty: is empty"),
        (text, "page.pth: is not of a format that is read: PyTorch"),
        (packed, "x.tgz: is a gzip archive; unpack it"),
        (other_zip, "x.zip: a zip archive without the data.pkl"),
        (no_tensors, "x.pkl: holds no tensors"),
        (objects, "objects.npz: an array of Python objects"),
        (lambda folder: folder, "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, write, says):
    with pytest.raises(readers.ReadError) as caught:
        readers.read_tensors(write(tmp_path))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_files_that_are_cut_off(tmp_path, name, share):
    data = (FIXTURES / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(readers.ReadError) as caught:
        readers.read_tensors(path)
    assert "\n" not in str(caught.value)


def test_readers_need_neither_jax_nor_another_framework():
    program = "import sys, diffusion_jax.readers; print(*sys.modules)"
    repository = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", program], cwd=repository, capture_output=True, text=True, check=True)
    assert not {"jax", "torch", "tensorflow"} & set(result.stdout.split())


def test_storages_of_big_endian_machines_are_refused(tmp_path):
    source = zipfile.ZipFile(io.BytesIO((FIXTURES / "zip.pth").read_bytes()))
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        for name in source.namelist():
            archive.writestr(name, b"big" if name.endswith("byteorder") else source.read(name))
    with pytest.raises(readers.ReadError, match="big-endian"):
        readers.read_tensors(tmp_path / "x.pth")
