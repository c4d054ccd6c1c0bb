"""Any folder of images, with class sub-folders for labels or without."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.decode import read_image
from diffusion_jax.data.source import LABEL
from diffusion_jax.readers import few
from diffusion_jax.readers.images import EXTENSIONS, UNREADABLE

TEST_FOLDERS = ("test", "val", "valid", "validation")
TEST_FRACTION = 0.1


class ImageFolder:
    """Images of files, decoded when asked for; see `load`."""

    dtype = np.dtype(np.uint8)

    def __init__(self, root: Path, found: _Scan, image_size: int, channels: int):
        self.image_shape = (image_size, image_size, channels)
        self.num_classes = None if found.class_names is None else len(found.class_names)
        self.class_names = found.class_names
        self.files = found.files
        self.passed_over = found.passed_over
        self._root = root
        self._labels = found.labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._root / self.files[index]
        image = read_image(path, str(path), image_size=self.image_shape[0], channels=self.image_shape[2])
        known = {} if self.class_names is None else {LABEL: self._labels[index]}
        return {"image": image, "condition": known}


def load(path: str | Path, split: str, *, image_size: int, channels: int = 3) -> ImageFolder:
    """One split of a folder.

    Layouts:

    - ``train/`` and one of ``test/``, ``val/``, ``valid/``, ``validation/`` (the first that exists) inside the folder
      are the splits. Otherwise, and for a ``train/`` alone, about 10 % of the images are held out for the test split by
      the hash of their relative path: adding or removing files leaves the others where they are. Every class keeps at
      least one image for training, and at least one image is held out.
    - Sub-folders of a split are classes, in alphabetical order, each with all images at any depth below it. Images
      that lie in the folder itself have no labels. The two cannot be mixed.

    Image files are those with one of `readers.images.EXTENSIONS` in any case. Links are followed, but for folders that
    a path has been in already. Hidden files and folders are ignored; of others `passed_over` has the count. Each image
    becomes a square as in `decode.read_image`.

    Args:
        path: the folder.
        split: "train" or "test".
        image_size: side of the square images in pixels.
        channels: 3 (RGB) or 1 (grey).

    Returns:
        The split, in the order of the sorted paths. Files are opened only when asked for, so an unreadable one raises
        its ValueError then.

    Raises:
        ValueError: no such folder, no images in it, a class without images, or no image that could be held out.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise ValueError(f"path must be a folder of images, but there is {found} at {str(path)!r}")

    folders = {entry.name for entry in _entries(root) if entry.is_dir(follow_symlinks=True)}
    test_folder = next((name for name in TEST_FOLDERS if name in folders), None)
    if "train" not in folders or test_folder is None:
        if folders == {"train"}:
            root = root / "train"
        found = _Scan(root)
        files, labels = found.files, found.labels
        held_out = _held_out(files, labels)
        if split == "test" and not held_out.any():
            raise ValueError(
                f"too few images in {root} to hold one out for the test split: add images or a test/ folder"
            )
        chosen = np.flatnonzero(held_out if split == "test" else ~held_out)
        found.files, found.labels = [files[i] for i in chosen], labels[chosen]
        return ImageFolder(root, found, image_size, channels)

    found = _Scan(root / "train")
    if split == "train":
        return ImageFolder(root / "train", found, image_size, channels)
    class_names, found = found.class_names, _Scan(root / test_folder)
    test_names = found.class_names
    if (test_names is None) != (class_names is None):
        with_classes, without = ("train", test_folder) if test_names is None else (test_folder, "train")
        raise ValueError(f"in {root}, {with_classes}/ has class folders and {without}/ has none: give both or neither")
    if test_names is not None and class_names is not None:
        unknown = sorted(set(test_names) - set(class_names))
        if unknown:
            raise ValueError(f"class {unknown[0]!r} of {root / test_folder} is not a class of {root / 'train'}")
        found.labels = np.array([class_names.index(name) for name in test_names])[found.labels]
    found.class_names = class_names
    return ImageFolder(root / test_folder, found, image_size, channels)


class _Scan:
    """The images of a folder: paths relative to it, labels [N], the names of the classes if it has any, and the count
    of what was passed over by the ending of its name."""

    def __init__(self, folder: Path):
        self.passed_over: Counter[str] = Counter()
        loose, by_class = [], {}
        for entry in sorted(_entries(folder), key=lambda entry: entry.name):
            if entry.is_dir():
                by_class[entry.name] = self._images_below(folder, entry.name)
            elif self._is_image(entry):
                loose.append(entry.name)
        if not loose and not any(by_class.values()):
            raise ValueError(
                f"no images in {folder} (looked for {', '.join(EXTENSIONS)}; hidden files are ignored"
                f"{'; there are ' + counted(self.passed_over) if self.passed_over else ''})"
            )
        if loose and any(by_class.values()):
            names = few([name for name, files in by_class.items() if files])
            raise ValueError(f"{folder} has class folders ({names}) and images beside them ({loose[0]}): separate them")
        self.class_names = tuple(by_class) if not loose else None
        if loose:
            self.files, self.labels = loose, np.zeros(len(loose), np.int32)
            return
        empty = [name for name, files in by_class.items() if not files]
        if empty:
            raise ValueError(f"class folder {folder / empty[0]} has no images: add some or remove the folder")
        self.files = [file for files in by_class.values() for file in files]
        self.labels = np.repeat(np.arange(len(by_class)), [len(files) for files in by_class.values()])

    def _images_below(self, folder: Path, name: str) -> list[str]:
        """Sorted paths, relative to `folder`, of the images at any depth below its sub-folder `name`."""
        files, pending = [], [name]
        been = {os.path.realpath(folder)}  # a link back up would never end
        while pending:
            inside = pending.pop()
            place = os.path.realpath(folder / inside)
            if place in been:
                self.passed_over["links to folders above"] += 1
                continue
            been.add(place)
            for entry in _entries(folder / inside):
                relative = f"{inside}/{entry.name}"
                if entry.is_dir():
                    pending.append(relative)
                elif self._is_image(entry):
                    files.append(relative)
        return sorted(files)

    def _is_image(self, entry: os.DirEntry[str]) -> bool:
        if entry.is_file() and entry.name.lower().endswith(EXTENSIONS):
            return True
        ending = os.path.splitext(entry.name)[1].lower() or "files without an ending"
        self.passed_over[ending if entry.is_file() else "broken links"] += 1
        return False


def counted(passed_over: Mapping[str, int]) -> str:
    """What was passed over, in words: 3 .heic, 1 .txt."""
    kinds = sorted(passed_over.items(), key=lambda item: (item[0] not in UNREADABLE, -item[1]))
    return few([f"{count} {kind}" for kind, count in kinds])


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"cannot list the folder {folder}: {error.strerror}") from error


def _held_out(files: list[str], labels: np.ndarray) -> np.ndarray:
    """The test mask [N], a function of each path alone but for the two guarantees that `load` states."""
    position = np.array([_hash(file) for file in files])
    mask = position < TEST_FRACTION
    keeps = np.array([members[position[members].argmax()] for members in _members(labels)])
    mask[keeps] = False
    if not mask.any():
        free = np.setdiff1d(np.arange(len(files)), keeps)
        mask[free[position[free].argsort()[:1]]] = True
    return mask


def _members(labels: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _hash(file: str) -> float:
    """Uniform in [0, 1), the same on every machine."""
    digest = hashlib.blake2b(file.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
