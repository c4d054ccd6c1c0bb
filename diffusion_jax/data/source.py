"""What a source of images is, its forms in memory, and how to take a whole one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

# The one condition that scores read: the class of an image.
LABEL = "label"


class Source(Protocol):
    """A finite, random-access collection of images of one size.

    Attributes:
        image_shape: (height, width, channels).
        dtype: uint8, or float32 for latents.
        num_classes: number of classes, or None when the images have no labels.
        class_names: one name a class, in the order of the labels, or None.
    """

    image_shape: tuple[int, int, int]
    dtype: np.dtype
    num_classes: int | None
    class_names: tuple[str, ...] | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": [height, width, channels], "condition": {name: value}}; safe to call from several threads.

        What is known of the image has a name each: "label", an int32 scalar, if there are classes; arrays of one shape,
        or texts, of any other. Raises IndexError from len(self) on, so that a source can be iterated over.
        """
        ...


class ArraySource:
    """A source that is arrays: images uint8 [N, H, W, C], labels int32 [N], and any other conditions [N, ...]."""

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        conditions: Mapping[str, np.ndarray] | None = None,
    ):
        if images.dtype != np.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ValueError(
                "images must be uint8 [N, H, W, C] and labels [N], "
                f"got {images.dtype} {list(images.shape)} and {list(labels.shape)}"
            )
        self.images = images
        self.labels = labels.astype(np.int32)
        self.image_shape = (images.shape[1], images.shape[2], images.shape[3])
        self.num_classes = num_classes
        self.class_names = None if class_names is None else tuple(class_names)
        self.conditions = {LABEL: self.labels, **(conditions or {})}

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        known = {name: values[index] for name, values in self.conditions.items()}
        return {"image": self.images[index], "condition": known}

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Copies of the images and of each condition at `indices` [b]."""
        return self.images[indices], {name: values[indices] for name, values in self.conditions.items()}


class CachedSource:
    """Keeps every image that it has decoded, so that each file is read once in a run and not once an epoch.

    The array is allocated whole but its pages are touched only as images arrive, so nothing is slow at the start.
    """

    def __init__(self, source: Source):
        self.image_shape = source.image_shape
        self.num_classes = source.num_classes
        self.class_names = source.class_names
        self._source = source
        self.dtype = source.dtype
        self._images = np.empty((len(source), *source.image_shape), source.dtype)
        self._conditions: list[dict[str, Any]] = [{}] * len(source)
        self._known = np.zeros(len(source), bool)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        images, _ = self.gather(np.array([index]))
        return {"image": images[0], "condition": self._conditions[index]}

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Copies of the images and of each condition at `indices` [b]."""
        # Threads that meet here on one image write the same bytes, and set `_known` only after them.
        for index in indices[~self._known[indices]]:
            example = self._source[int(index)]
            self._images[index] = example["image"]
            self._conditions[index] = example["condition"]
            self._known[index] = True
        return self._images[indices], _stacked([self._conditions[index] for index in indices])


def _stacked(conditions: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """The values of some examples as one array for each name; of texts an array of objects."""
    return {name: _array([known[name] for known in conditions]) for name in conditions[0]} if len(conditions) else {}


def _array(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=object) if isinstance(values[0], str) else np.stack(values)


def num_bytes(source: Source) -> int:
    """Size of all images of a source when decoded."""
    height, width, channels = source.image_shape
    return len(source) * height * width * channels * source.dtype.itemsize


def gather(source: Source, indices: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images [b, H, W, C] and name -> condition [b, ...] at `indices` [b], as fresh arrays."""
    if isinstance(source, ArraySource | CachedSource):
        return source.gather(indices)
    images = np.empty((len(indices), *source.image_shape), source.dtype)
    conditions = []
    for row, index in enumerate(indices):
        example = source[int(index)]
        images[row] = example["image"]
        conditions.append(example["condition"])
    return images, _stacked(conditions)


def load_arrays(
    source: Source, limit: int | None = None, *, num_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """A whole source, or an evenly spaced part of it, for evaluation.

    Args:
        source: the source.
        limit: how many images at most. Image i of the result is image floor(i N / limit) of the source, so a source
            that is sorted by class (an image folder) gives every class its share, and a larger source gives a
            reproducible part. None takes all.
        num_threads: threads that decode; None for one a core, at most 16.

    Returns:
        images [n, H, W, C] of the source's dtype and int32 labels [n], in the order of the source; without classes all
        labels are 0.

    Raises:
        ValueError: a limit below 1, or an image that cannot be read.
    """
    indices = spaced(len(source), limit)
    count = len(indices)
    if isinstance(source, ArraySource):
        return source.images[indices], source.labels[indices]
    images = np.empty((count, *source.image_shape), source.dtype)
    labels = np.zeros(count, np.int32)

    def fill(rows: np.ndarray) -> None:
        images[rows], conditions = gather(source, indices[rows])
        labels[rows] = conditions.get(LABEL, 0)

    # Blocks rather than single images: a task costs about as much as decoding a small image.
    blocks = np.array_split(np.arange(count), max(1, count // 64))
    with ThreadPoolExecutor(num_threads or num_decode_threads()) as pool:
        for task in [pool.submit(fill, rows) for rows in blocks]:
            task.result()
    return images, labels


def batches(
    source: Source, size: int, limit: int | None = None, *, rows: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """What `load_arrays` gives of images, in its order, in batches of one shape: for sources that memory cannot hold.

    One batch is read ahead, in threads.

    Args:
        source: the source.
        size: images in a batch.
        limit: as in `load_arrays`.
        rows: the rows of every batch that are read, int [r]; None for all. The others stay zero: another process has
            them.

    Yields:
        images [size, H, W, C] of the source's dtype, the last ones filled up with zeros, and how many of them are
        images.

    Raises:
        ValueError: a limit below 1, or an image that cannot be read.
    """
    indices = spaced(len(source), limit)
    rows = np.arange(size) if rows is None else rows
    threads = num_decode_threads()

    with ThreadPoolExecutor(threads) as pool:

        def begin(start: int) -> tuple[np.ndarray, list[Future[None]]]:
            images = np.zeros((size, *source.image_shape), source.dtype)
            present = rows[start + rows < len(indices)]

            def fill(part: np.ndarray) -> None:
                images[part] = gather(source, indices[start + part])[0]

            parts = np.array_split(present, min(threads, max(1, len(present))))
            return images, [pool.submit(fill, part) for part in parts]

        ahead = begin(0)
        for start in range(0, len(indices), size):
            images, reading = ahead
            if start + size < len(indices):
                ahead = begin(start + size)
            for part in reading:
                part.result()
            yield images, min(size, len(indices) - start)


def spaced(count: int, limit: int | None) -> np.ndarray:
    """Evenly spaced places [n] among `count`, at most `limit` of them: i is at floor(i count / n). None takes all.

    Raises ValueError for a limit below 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 or None, got {limit}")
    taken = count if limit is None else min(limit, count)
    return np.arange(taken) * count // max(taken, 1)


def num_decode_threads() -> int:
    """One thread a core, at most 16: decoders release the interpreter lock for a part of their time only."""
    return min(16, os.cpu_count() or 1)
