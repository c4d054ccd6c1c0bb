"""NumPy's .npz archives, of which nothing is unpickled and a damaged one is one line."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import numpy as np

from diffusion_jax.readers.errors import ReadError, decoding

_KIND = ".npz archive"
# An array that says it is this many times larger than its part of the file is a trap, not data.
_LARGEST_RATIO = 2000


class Npz:
    """The arrays of an .npz file, each read when it is asked for.

    Attributes:
      names: of the arrays, in the order of the file.

    Raises:
      ReadError: when it is opened and at each array, in one line that names the file.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self._path = Path(path)
        with decoding(self._path, _KIND):
            opened = np.load(self._path, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ReadError(f"{self._path}: is a single array; an .npz archive has names")
        self._file = opened
        self.names: tuple[str, ...] = tuple(opened.files)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> np.ndarray:
        """The array of that name. Raises ReadError where there is none, or it cannot be read."""
        if name not in self.names:
            raise ReadError(f"{self._path}: has no array {name!r}; it has {', '.join(self.names[:8]) or 'none'}")
        with decoding(self._path, _KIND):
            archive = self._file.zip
            if archive is not None:
                entry = archive.getinfo(name if name in archive.NameToInfo else f"{name}.npy")
                if entry.file_size > _LARGEST_RATIO * max(entry.compress_size, 1 << 16):
                    raise ReadError(f"{self._path}: {name!r} would grow to {entry.file_size:,} bytes")
            return self._file[name]

    def __enter__(self) -> Npz:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
