"""Where the weights of feature extractors come from: a file of the user, the cache, or a download that is checked.

The cache is $XDG_CACHE_HOME/diffusion_jax/weights (~/.cache/diffusion_jax/weights). It holds downloads under the names
that their authors gave them, and what was made of other formats as .safetensors, named by the hash of its source.
"""

import fcntl
import hashlib
import os
import tempfile
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_jax import readers

_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 20
# Changes whenever the conversion of a file's tensors does.
_CONVERSION = 1

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True)
class Source:
    """The file that holds an extractor's weights by default.

    Attributes:
      name: of the extractor.
      file: its name in the cache.
      url: where it is published.
      sha256: of the file, None if nobody has published it.
      others: SHA-256 -> name of other known files with the same weights.
    """

    name: str
    file: str
    url: str
    sha256: str | None = None
    others: Mapping[str, str] | None = None

    def knows(self, digest: str) -> bool:
        return digest == self.sha256 or digest in (self.others or {})


def cache_directory() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "diffusion_jax" / "weights"


def find(source: Source, weights: str | Path | None) -> Path:
    """The file of the weights: the one named, else the cached one, else downloaded into the cache.

    Raises:
      ValueError: no such file; or no download, with the file to put and where.
    """
    if weights is not None:
        path = Path(weights)
        if not path.exists():
            raise ValueError(f"{path}: no such file; it must hold the weights of {source.name}")
        return path
    path = cache_directory() / source.file
    return path if path.exists() else _download(source, path)


def inside(weights: str | Path | None) -> Path | None:
    """The file that is meant: of a folder in the layout of transformers its model.safetensors."""
    if weights is None:
        return None
    path = Path(weights)
    return path / "model.safetensors" if path.is_dir() else path


def load(source: Source, path: Path, convert: Callable[[Tensors], Tensors]) -> Tensors:
    """The tensors of a file as the extractor wants them; a file that is not .safetensors is converted once.

    Warns if the SHA-256 of the file is not a known one, as it may be: everybody's own conversions are.

    Args:
      source: the known files.
      path: from :func:`find`.
      convert: from the tensors of any file to those of the extractor; raises ValueError if they do not fit.

    Raises:
      ValueError: a file that cannot be read, or whose tensors do not fit.
    """
    digest = sha256_of(path)
    if not source.knows(digest) and (source.sha256 or source.others):
        warnings.warn(f"{path}: not a known file of {source.name} (SHA-256 {digest})", stacklevel=3)
    converted = cache_directory() / f"{source.name}-{digest[:16]}-v{_CONVERSION}.safetensors"
    if converted.is_file():
        return readers.read_tensors(converted)
    tensors = convert(readers.read_tensors(path))
    if path.suffix != ".safetensors":
        _write(converted, tensors)
    return tensors


def sha256_of(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
      ValueError: a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None


def _write(path: Path, tensors: Tensors) -> None:
    """Writes a .safetensors file that appears whole or not at all; a cache that cannot be written is done without."""
    from safetensors.numpy import save_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            save_file({name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}, f"{folder}/converted")
            os.replace(f"{folder}/converted", path)
    except OSError:
        return


def _download(source: Source, path: Path) -> Path:
    """Downloads the file, going on where an earlier attempt has stopped, and checks it."""
    known = f", SHA-256 {source.sha256}" if source.sha256 else ""
    wanted = f"{source.name} needs its weights: put {source.file} ({source.url}{known}) at {path}, or name a file"
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f"{path.name}.lock")):
            if path.exists():  # by another process, meanwhile
                return path
            _fetch(source.url, part)
            digest = sha256_of(part)
            if source.sha256 and digest != source.sha256:
                part.unlink()
                raise ValueError(f"{wanted}; what was downloaded has the SHA-256 {digest} and was thrown away")
            if not source.sha256:
                warnings.warn(f"{path}: nobody has published its SHA-256; it is {digest}", stacklevel=4)
            os.replace(part, path)
    except (OSError, urllib.error.URLError) as error:  # a URLError is an OSError, an HTTPError a URLError
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"{wanted}; the download failed ({' '.join(str(reason).split())})") from None
    return path


def _fetch(url: str, part: Path) -> None:
    from tqdm import tqdm

    begun = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not begun:  # 416: there is nothing behind the part, so that it may be whole
            raise
        return
    with response:
        begun = begun if response.status == 206 else 0  # 200: the whole file, from the start
        length = response.headers.get("Content-Length")
        total = begun + int(length) if length else None
        bar = tqdm(total=total, initial=begun, unit="B", unit_scale=True, desc=part.stem)
        with part.open("ab" if begun else "wb") as file, bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise OSError(f"it stopped after {size} of {total} bytes; the next attempt goes on from there")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of the machine at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
