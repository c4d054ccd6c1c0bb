"""JSON and .npz files that are damaged, hostile or of another kind are one line; those that are whole are read."""

import io
import json
import struct
import zipfile

import numpy as np
import pytest

from diffusion_jax import readers

DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "Expecting property name"),
        (DEEP.encode(), "nested too deep"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
        (b"[1]", "holds a list; it must hold a JSON object"),
        (b"x" * 1_000_000, "Expecting value"),
    ],
)
def test_json_that_is_none_is_one_line(content, said, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(readers.ReadError, match=said) as caught:
        readers.read_object(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < len(str(path)) + 300


def test_json_in_the_place_of_which_there_is_something_else(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(readers.ReadError, match="is a directory"):
        readers.read_json(tmp_path / "config.json")
    with pytest.raises(readers.ReadError, match="no such file"):
        readers.read_json(tmp_path / "missing.json")


def test_rows_are_the_lines_that_hold_one(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        '{"step": 1, "loss": 2.0}',
        "",
        '{"step": 2, "lo',
        "[3]",
        '{"step": "4"}',
        DEEP,
        '{"step": 5, "loss": NaN}',
    ]
    path.write_text("\n".join(lines))
    assert readers.read_rows(path) == [{"step": 1, "loss": 2.0}, {"step": 5, "loss": None}]


# --- .npz -----------------------------------------------------------------------------------------


def archive(path, compression=zipfile.ZIP_STORED, **arrays):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, array in arrays.items():
            stream = io.BytesIO()
            np.lib.format.write_array(stream, array, allow_pickle=True)
            file.writestr(f"{name}.npy", stream.getvalue())
    return path


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_damaged_archive_is_one_line(compression, tmp_path):
    path = archive(tmp_path / "a.npz", compression, mu=np.arange(4000.0))
    whole = path.read_bytes()
    for place in range(60, len(whole) - 120, max(1, len(whole) // 40)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            with readers.Npz(path) as file:
                np.testing.assert_array_equal(file["mu"], np.arange(4000.0))
        except readers.ReadError as error:
            assert "\n" not in str(error) and str(path) in str(error)


def changed(path, place, layout, value):
    """The archive with a field of every local and central header changed."""
    content = bytearray(path.read_bytes())
    for magic, offset in ((b"PK\x03\x04", place), (b"PK\x01\x02", place + 2)):
        start = content.find(magic)
        struct.pack_into(layout, content, start + offset, value)
    path.write_bytes(content)
    return path


def test_archives_that_cannot_be_read_say_why(tmp_path):
    mu = np.arange(3.0)
    encrypted = changed(archive(tmp_path / "encrypted.npz", mu=mu), 6, "<H", 1)
    unknown = changed(archive(tmp_path / "unknown.npz", mu=mu), 8, "<H", 77)
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "text.npz").write_text("mu")
    np.save(tmp_path / "single.npy", mu)
    objects = archive(tmp_path / "objects.npz", mu=np.array([print], object))
    for path, said in (
        (encrypted, "encrypted"),
        (unknown, "compression"),
        (tmp_path / "empty.npz", "No data left|no readable"),
        (tmp_path / "text.npz", "no readable .npz"),
        (tmp_path / "single.npy", "single array"),
        (objects, "Object arrays"),
        (archive(tmp_path / "other.npz", nu=mu), "has no array 'mu'; it has nu"),
    ):
        with pytest.raises(readers.ReadError, match=said), readers.Npz(path) as file:
            file["mu"]


def test_an_archive_that_would_fill_the_memory_is_not_unpacked(tmp_path):
    path = archive(tmp_path / "bomb.npz", zipfile.ZIP_BZIP2, mu=np.zeros(40_000_000, np.float64))
    assert path.stat().st_size < 10_000
    with pytest.raises(readers.ReadError, match="would grow to 320,000,"), readers.Npz(path) as file:
        file["mu"]


def test_fortran_order_is_an_order_like_another(tmp_path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    with readers.Npz(archive(tmp_path / "f.npz", mu=array)) as file:
        np.testing.assert_array_equal(file["mu"], array)


def test_errors_are_cut_to_a_line():
    assert readers.one_line("a\nb  c") == "a b c"
    assert len(readers.one_line(json.dumps("x" * 10**6))) == 200
