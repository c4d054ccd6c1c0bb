"""Images that an autoencoder has already turned into latents, once, so that training does not do it at every step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import readers
from diffusion_jax.data.source import LABEL

# What an encoded folder says of itself; written last, so that a folder without it is not complete.
RECORD = "latents.json"
# In each of train/ and test/: arrays [n, H, W, C], in the order of their names, and one label for each row of all.
SHARDS = "latents-*.npy"
LABELS = "labels.npy"
# Without a split of its own every tenth is held out.
TEST_STRIDE = 10


class Latents:
    """Latents in files, read row by row; see `load`.

    Attributes beside those of a source:
        record: what the folder says of itself, {} for an .npz.
    """

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        shards: Sequence[np.ndarray],
        labels: np.ndarray | None,
        rows: np.ndarray,
        num_classes: int | None,
        record: dict[str, Any],
    ):
        self.image_shape = (shards[0].shape[1], shards[0].shape[2], shards[0].shape[3])
        self.num_classes = num_classes
        names = record.get("class_names")
        self.class_names = None if names is None else tuple(names)
        self.record = record
        self._shards = shards
        self._starts = np.cumsum([0, *(len(shard) for shard in shards)])
        self._labels = labels
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self._rows[index]
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        latent = np.asarray(self._shards[shard][row - self._starts[shard]], np.float32)
        known = {} if self._labels is None else {LABEL: np.int32(self._labels[row])}
        return {"image": latent, "condition": known}


def load(path: str | Path, split: str, *, image_size: int, channels: int) -> Latents:
    """One split of encoded images.

    Rows are latents [H, W, C], or the means and standard deviations of their Gaussians side by side, [H, W, 2 C], from
    which every epoch draws anew.

    Layouts:

    - the folder that ``./launch/local.sh encode`` writes: latents.json, and train/ and test/ with
      latents-*.npy and labels.npy each;
    - an .npz with "latents" [N, H, W, C or 2 C] and, if there are classes, "labels" int [N]. Every tenth row is held
      out.

    Args:
        path: the folder or file. Folders are read from disk as rows are asked for; an .npz is read whole.
        split: "train" or "test".
        image_size: H and W.
        channels: C.

    Raises:
        ValueError: what is missing or does not fit, in one line.
    """
    root = Path(path).expanduser()
    record: dict[str, Any] = {}
    if root.is_dir():
        record = _record(root)
        names = sorted((root / split).glob(SHARDS))
        if not names:
            raise ValueError(f"path {str(path)!r} has no {split}/{SHARDS}")
        shards = [_open(name) for name in names]
        labels = _open(root / split / LABELS) if (root / split / LABELS).is_file() else None
        rows = np.arange(sum(map(len, shards)))
    elif root.suffix == ".npz" and root.is_file():
        arrays = _npz(root)
        shards, labels = [arrays["latents"]], arrays.get("labels")
        held_out = np.arange(len(shards[0])) % TEST_STRIDE == TEST_STRIDE - 1
        rows = np.flatnonzero(held_out if split == "test" else ~held_out)
    else:
        found = "something else" if root.exists() else "nothing"
        raise ValueError(f"path must be a folder of encoded images or an .npz, but there is {found} at {str(path)!r}")
    _check(root, shards, labels, image_size, channels)
    if not len(rows):
        raise ValueError(f"path {str(path)!r} has no rows for the {split} split")
    num_classes = None
    if labels is not None:
        num_classes = int(record.get("num_classes") or labels.max() + 1)
    return Latents(shards, labels, rows, num_classes, record)


def _record(root: Path) -> dict[str, Any]:
    path = root / RECORD
    if not path.is_file():
        raise ValueError(f"path {str(root)!r} has no {RECORD}: it was not written by the command encode, or not wholly")
    return readers.read_object(path)


def _open(path: Path) -> np.ndarray:
    with readers.decoding(path, ".npy file"):
        return np.load(path, mmap_mode="r", allow_pickle=False)


def _npz(path: Path) -> dict[str, np.ndarray]:
    with readers.Npz(path) as file:
        arrays = {name: file[name] for name in file.names if name in ("latents", "labels")}
    if "latents" not in arrays:
        raise ValueError(f"{path} has no array 'latents'")
    return arrays


def _check(root: Path, shards: Sequence[np.ndarray], labels: np.ndarray | None, image_size: int, channels: int) -> None:
    for shard in shards:
        if shard.ndim != 4 or not np.issubdtype(shard.dtype, np.floating) or shard.shape[1:] != shards[0].shape[1:]:
            raise ValueError(f"{root}: latents must be floats [N, H, W, C], all of one shape, got {shard.shape}")
    height, width, found = shards[0].shape[1:]
    if (height, width) != (image_size, image_size):
        raise ValueError(f"image_size is {image_size}, but the latents in {root} are of {height}x{width}")
    if found not in (channels, 2 * channels):
        raise ValueError(f"channels is {channels}, but the latents in {root} have {found}, neither as many nor twice")
    count = sum(map(len, shards))
    if labels is not None and (labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer)):
        raise ValueError(f"{root}: labels must be integers, one for each of {count} latents, got {list(labels.shape)}")
    if labels is not None and labels.min() < 0:
        raise ValueError(f"{root}: labels must be at least 0, got {labels.min()}")
