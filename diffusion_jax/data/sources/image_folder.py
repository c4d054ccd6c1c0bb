"""Any folder of images, with class sub-folders for labels or without."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax.data.decode import read_image

EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
TEST_FOLDERS = ("test", "val", "valid", "validation")
TEST_FRACTION = 0.1


class ImageFolder:
    """Images of files, decoded when asked for; see `load`."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self, root: Path, files: list[str], labels: np.ndarray, class_names: tuple[str, ...] | None,
        image_size: int, channels: int,
    ):  # fmt: skip
        self.image_shape = (image_size, image_size, channels)
        self.num_classes = None if class_names is None else len(class_names)
        self.class_names = class_names
        self.files = files
        self._root = root
        self._labels = labels.astype(np.int32)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = self._root / self.files[index]
        image = read_image(path, str(path), image_size=self.image_shape[0], channels=self.image_shape[2])
        return {"image": image, "label": self._labels[index]}


def load(path: str | Path, split: str, *, image_size: int, channels: int = 3) -> ImageFolder:
    """One split of a folder.

    Layouts:

    - ``train/`` and one of ``test/``, ``val/``, ``valid/``, ``validation/`` (the first that exists) inside the folder
      are the splits. Otherwise, and for a ``train/`` alone, about 10 % of the images are held out for the test split by
      the hash of their relative path: adding or removing files leaves the others where they are. Every class keeps at
      least one image for training, and at least one image is held out.
    - Sub-folders of a split are classes, in alphabetical order, each with all images at any depth below it. Images
      that lie in the folder itself have no labels. The two cannot be mixed.

    Image files are those that end in .bmp, .gif, .jpeg, .jpg, .png or .webp in any case. Hidden files and folders,
    symbolic links (except `path` itself) and other files are ignored. Each image becomes a square as in
    `decode.read_image`.

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

    folders = {entry.name for entry in _entries(root) if entry.is_dir(follow_symlinks=False)}
    test_folder = next((name for name in TEST_FOLDERS if name in folders), None)
    if "train" not in folders or test_folder is None:
        if folders == {"train"}:
            root = root / "train"
        files, labels, class_names = _scan(root)
        held_out = _held_out(files, labels)
        if split == "test" and not held_out.any():
            raise ValueError(
                f"too few images in {root} to hold one out for the test split: add images or a test/ folder"
            )
        chosen = np.flatnonzero(held_out if split == "test" else ~held_out)
        return ImageFolder(root, [files[i] for i in chosen], labels[chosen], class_names, image_size, channels)

    files, labels, class_names = _scan(root / "train")
    if split == "train":
        return ImageFolder(root / "train", files, labels, class_names, image_size, channels)
    files, labels, test_names = _scan(root / test_folder)
    if (test_names is None) != (class_names is None):
        with_classes, without = ("train", test_folder) if test_names is None else (test_folder, "train")
        raise ValueError(f"in {root}, {with_classes}/ has class folders and {without}/ has none: give both or neither")
    if test_names is not None and class_names is not None:
        unknown = sorted(set(test_names) - set(class_names))
        if unknown:
            raise ValueError(f"class {unknown[0]!r} of {root / test_folder} is not a class of {root / 'train'}")
        labels = np.array([class_names.index(name) for name in test_names])[labels]
    return ImageFolder(root / test_folder, files, labels, class_names, image_size, channels)


def _scan(folder: Path) -> tuple[list[str], np.ndarray, tuple[str, ...] | None]:
    """The images of a folder: paths relative to it, labels [N], and the names of the classes if it has any."""
    loose, by_class = [], {}
    for entry in sorted(_entries(folder), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            by_class[entry.name] = _images_below(folder, entry.name)
        elif _is_image(entry):
            loose.append(entry.name)
    if not loose and not any(by_class.values()):
        raise ValueError(
            f"no images in {folder} (looked for {', '.join(EXTENSIONS)}; hidden files and symbolic links are ignored)"
        )
    if loose and any(by_class.values()):
        names = ", ".join(name for name, files in by_class.items() if files)
        raise ValueError(f"{folder} has class folders ({names}) and images beside them ({loose[0]}): separate them")
    if loose:
        return loose, np.zeros(len(loose), np.int32), None
    empty = [name for name, files in by_class.items() if not files]
    if empty:
        raise ValueError(f"class folder {folder / empty[0]} has no images: add some or remove the folder")
    labels = np.repeat(np.arange(len(by_class)), [len(files) for files in by_class.values()])
    return [file for files in by_class.values() for file in files], labels, tuple(by_class)


def _images_below(folder: Path, name: str) -> list[str]:
    """Sorted paths, relative to `folder`, of the images at any depth below its sub-folder `name`."""
    files, pending = [], [name]
    while pending:
        inside = pending.pop()
        for entry in _entries(folder / inside):
            relative = f"{inside}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                pending.append(relative)
            elif _is_image(entry):
                files.append(relative)
    return sorted(files)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"cannot list the folder {folder}: {error.strerror}") from error


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and entry.name.lower().endswith(EXTENSIONS)


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
