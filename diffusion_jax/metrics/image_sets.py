"""Sets of images to be measured: folders, archives and .npz files, read one by one in a fixed order.

Images come as their files have them: no resizing, no cropping, which belong to the protocol. Grey and palette images
become RGB and transparency is dropped, as Pillow's convert("RGB") has it in every reference implementation; 16-bit grey
is reduced to its high byte.
"""

import hashlib
import io
import itertools
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple, Protocol

import numpy as np

from diffusion_jax import readers
from diffusion_jax.readers import images
from diffusion_jax.readers.images import EXTENSIONS

LOSSY = (".avif", ".jfif", ".jp2", ".jpeg", ".jpg", ".webp")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2")
_DECODERS, _AHEAD, _CHUNK = 8, 64, 1 << 20

Array = np.ndarray


class ImageSetError(ValueError):
    """A set of images that cannot be opened; the message is one line for the user."""


class Item(NamedTuple):
    """One image: its name, and uint8 [H, W, 3] or the reason why it cannot be read."""

    name: str
    image: Array | str


class ImageSet(Protocol):
    """Images in a fixed order.

    Attributes:
      name: what the user called it.
      lossy: how many of its files are in a format that loses detail.
    """

    name: str
    lossy: int

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item]: ...

    def sha256(self) -> str:
        """Of the content, in order, whatever the names are."""
        ...


Loader = Callable[[str], ImageSet]


def open_images(name: str, loaders: Mapping[str, Loader] | None = None) -> ImageSet:
    """A set of images by its path, or, for "prefix:rest", by the loader of that prefix.

    A folder is searched at every depth, in the order of the paths; an archive (.zip, .tar, compressed too) likewise; an
    .npz holds uint8 [N, H, W, C] under arr_0 or alone. Raises ImageSetError for what is none of these or is empty.
    """
    prefix, colon, rest = name.partition(":")
    if colon and loaders and prefix in loaders:
        return loaders[prefix](rest)
    path = Path(name).expanduser()
    if path.is_dir():
        found: ImageSet = FolderImages(path)
    elif not path.is_file():
        raise ImageSetError(f"{name}: no such file or folder")
    elif path.suffix == ".npz":
        found = NpzImages(path)
    elif path.name.lower().endswith(ARCHIVES):
        found = ZipImages(path) if path.suffix.lower() == ".zip" else TarImages(path)
    else:
        raise ImageSetError(f"{name}: is not a folder, an .npz, or an archive ({', '.join(ARCHIVES)})")
    if not len(found):
        raise ImageSetError(f"{name}: no images in it (looked for {', '.join(EXTENSIONS)})")
    return found


class FolderImages:
    """Image files below a folder, hidden ones left out."""

    def __init__(self, root: Path):
        self.name = str(root)
        self._root = root
        found = (path.relative_to(root) for path in root.rglob("*") if _is_image(path.name) and path.is_file())
        self._files = sorted(str(path) for path in found if not any(part.startswith(".") for part in path.parts))
        self.lossy = sum(file.lower().endswith(LOSSY) for file in self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Item]:
        return _decoded((file, self._root / file) for file in self._files)

    def sha256(self) -> str:
        return _sha256_of_files(self._root / file for file in self._files)


class ZipImages:
    """Image files in a .zip."""

    def __init__(self, path: Path):
        self.name = str(path)
        self._path = path
        with readers.decoding(path, ".zip archive", ImageSetError), zipfile.ZipFile(path) as archive:
            self._files = sorted(entry for entry in archive.namelist() if _is_image(entry))
        self.lossy = sum(file.lower().endswith(LOSSY) for file in self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Item]:
        with zipfile.ZipFile(self._path) as archive:

            def read(file: str) -> bytes | str:
                try:
                    with readers.decoding(None, "part of the archive"):
                        return archive.read(file)
                except readers.ReadError as error:
                    return str(error)

            yield from _decoded((file, read(file)) for file in self._files)

    def sha256(self) -> str:
        return _sha256_of_files([self._path])


class TarImages:
    """Image files in a .tar, in the order of the archive, which is read from start to end."""

    def __init__(self, path: Path):
        self.name = str(path)
        self._path = path
        with readers.decoding(path, ".tar archive", ImageSetError), tarfile.open(path) as archive:
            files = [entry.name for entry in archive if entry.isfile() and _is_image(entry.name)]
        self._count = len(files)
        self.lossy = sum(file.lower().endswith(LOSSY) for file in files)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Item]:
        with tarfile.open(self._path) as archive:

            def contents() -> Iterator[tuple[str, bytes]]:
                for entry in archive:
                    if entry.isfile() and _is_image(entry.name):
                        file = archive.extractfile(entry)
                        yield entry.name, b"" if file is None else file.read()

            yield from _decoded(contents())

    def sha256(self) -> str:
        return _sha256_of_files([self._path])


class NpzImages:
    """uint8 [N, H, W, C] in an .npz, under arr_0 or as its only array; read in pieces, since such files are large."""

    lossy = 0
    _whole: Array | None = None

    def __init__(self, path: Path):
        self.name = str(path)
        self._path = path
        with readers.decoding(path, ".npz archive", ImageSetError), zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            if "arr_0.npy" not in members and len(members) != 1:
                raise ImageSetError(f"{path}: holds {readers.few(members)}; expected images under arr_0")
            self._member = "arr_0.npy" if "arr_0.npy" in members else members[0]
            with archive.open(self._member) as file:
                self._shape, fortran, dtype = _npy_header(file)
        if fortran:  # column by column, so that no image lies together: read at once
            with readers.Npz(path) as file:
                self._whole = file[self._member.removesuffix(".npy")]
        if dtype != np.uint8 or len(self._shape) != 4 or self._shape[-1] not in (1, 3):
            raise ImageSetError(
                f"{path}: {self._member.removesuffix('.npy')} is {dtype} {list(self._shape)}; expected uint8 images "
                "[N, H, W, 3]"
            )

    def __len__(self) -> int:
        return self._shape[0]

    def __iter__(self) -> Iterator[Item]:
        if self._whole is not None:
            for index, image in enumerate(self._whole):
                yield Item(f"{self._path}[{index}]", _three_channels(image))
            return
        with zipfile.ZipFile(self._path) as archive, archive.open(self._member) as file:
            _npy_header(file)
            size = int(np.prod(self._shape[1:]))
            for index in range(len(self)):
                name = f"{self._path}[{index}]"
                data = file.read(size)
                if len(data) < size:
                    yield Item(name, "the file ends before it")
                else:
                    yield Item(name, _three_channels(np.frombuffer(data, np.uint8).reshape(self._shape[1:])))

    def sha256(self) -> str:
        return _sha256_of_files([self._path])


class EncodedImages:
    """Image files in memory or in a data base: a sequence of their bytes."""

    lossy = 0

    def __init__(self, files: Sequence[bytes], name: str):
        self.name = name
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __iter__(self) -> Iterator[Item]:
        return _decoded((f"{self.name}[{index}]", self._files[index]) for index in range(len(self)))

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for index in range(len(self)):
            digest.update(len(self._files[index]).to_bytes(8, "little"))
            digest.update(self._files[index])
        return digest.hexdigest()


def decode(file: Path | BinaryIO) -> Array:
    """One image file as uint8 [H, W, 3]; raises ReadError with the reason if it cannot be read."""
    return np.asarray(images.decode(file, upright=False, background=None).convert("RGB"))


def _decoded(files: Iterable[tuple[str, Path | bytes | str]]) -> Iterator[Item]:
    """Decodes in threads, some files ahead, and yields in the order given; a string is a reason for failure."""

    def read(file: tuple[str, Path | bytes | str]) -> Item:
        name, content = file
        if isinstance(content, str):
            return Item(name, content)
        try:
            return Item(name, decode(io.BytesIO(content) if isinstance(content, bytes) else content))
        except ValueError as error:
            return Item(name, str(error))

    pending = iter(files)
    with ThreadPoolExecutor(_DECODERS) as pool:
        while ahead := list(itertools.islice(pending, _AHEAD)):
            yield from pool.map(read, ahead)


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS) and not name.rsplit("/", 1)[-1].startswith(".")


def _three_channels(image: Array) -> Array:
    return np.repeat(image, 3, axis=-1) if image.shape[-1] == 1 else image


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _sha256_of_files(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.stat().st_size.to_bytes(8, "little"))
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
