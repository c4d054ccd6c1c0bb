"""PyTorch's files: the zip layout (TorchScript too), and the layout that torch.save wrote before version 1.6."""

import zipfile
from typing import IO, Any

from diffusion_jax.readers import allowed
from diffusion_jax.readers.errors import ReadError
from diffusion_jax.readers.pickle_machine import Constructor, Global, resolve, run
from diffusion_jax.readers.torch_tensors import Storage, storage_of

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# How a file of the legacy layout starts: protocol 2, and the magic number.
LEGACY_START = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little") + b"."
_ENTRY_LIMIT = 1_000_000


def read_legacy(stream: IO[bytes], *, nested: bool = False) -> Any:
    """A file of the legacy layout: its objects, finished; of a nested file the storage, as it is.

    Five pickles come first (magic number, version, byte order, objects, keys of the storages), then for each key the
    number of elements and the data.
    """
    find = _find_nested if nested else allowed.find
    storages: dict[str, Storage] = {}
    if run(stream, find) != _MAGIC or run(stream, find) != _PROTOCOL:
        raise ReadError("not a file of PyTorch's legacy layout, version 1001")
    system = run(stream, find)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise ReadError("a file of a big-endian machine")
    tree = run(stream, find, lambda identifier: storage_of(identifier, storages))
    keys = run(stream, find)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ReadError("a file whose list of storages is broken")
    for key in keys:
        header = stream.read(8)
        if key not in storages or int.from_bytes(header, "little") != storages[key].count or len(header) != 8:
            raise ReadError(f"a storage {key[:40]!r} whose size is not the one its tensors expect")
        data = stream.read(storages[key].nbytes)
        if len(data) != storages[key].nbytes:
            raise ReadError(
                f"the file is cut off: storage {key[:40]!r} has {len(data)} of {storages[key].nbytes} bytes"
            )
        storages[key].fill(data)
    return tree if nested else resolve(tree)


def read_zip(archive: zipfile.ZipFile) -> Any:
    """A file of the zip layout: the objects of its data.pkl, finished; code and constants are left alone."""
    programs = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise ReadError("a zip archive without the data.pkl of a PyTorch file")
    root = programs[0].removesuffix("data.pkl")
    if f"{root}byteorder" in archive.namelist() and _entry(archive, f"{root}byteorder") != b"little":
        raise ReadError("a file of a big-endian machine")
    storages: dict[str, Storage] = {}
    with archive.open(programs[0]) as stream:
        tree = run(stream, allowed.find, lambda identifier: storage_of(identifier, storages))
    for key, storage in storages.items():
        storage.fill(_entry(archive, f"{root}data/{key}"))
    return resolve(tree)


def checked_zip(stream: IO[bytes], size: int) -> zipfile.ZipFile:
    """The archive, if what its entries declare can come from a file of this size (no zip bomb)."""
    archive = zipfile.ZipFile(stream)
    entries = archive.infolist()
    packed, unpacked = sum(entry.compress_size for entry in entries), sum(entry.file_size for entry in entries)
    stored = [entry for entry in entries if entry.compress_type == zipfile.ZIP_STORED]
    lies = any(entry.compress_size != entry.file_size for entry in stored) or len(entries) > _ENTRY_LIMIT
    # overlapping entries, and far more than weights can be packed (they hardly can)
    if lies or packed > size or unpacked > 100 * size:
        raise ReadError(f"a zip archive of {size} bytes that declares {unpacked} bytes in {len(entries)} entries")
    if any(entry.flag_bits & 1 for entry in entries):
        raise ReadError("an encrypted zip archive")
    return archive


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        raise ReadError(f"the zip archive has no entry {name[:80]!r}") from None


def _find_nested(wanted: Global) -> Constructor:
    """As elsewhere, but files are not nested twice."""
    if wanted == Global("torch.storage", "_load_from_bytes"):
        raise ReadError("a file nested in a nested file")
    return allowed.find(wanted)
