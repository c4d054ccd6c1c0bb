"""A hash of the content of a set of images, whoever reads which part of it and in whatever order."""

import hashlib
from collections.abc import Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils

_BITS = 256


class ContentHash:
    """The sum, modulo 2^256, of the SHA-256 of each image with its place; so parts may be added by several processes.

    Good against mistakes, not against an adversary, who could choose images for a sum.
    """

    def __init__(self) -> None:
        self._sum = 0

    def add(self, places: Iterable[int], images: np.ndarray) -> None:
        """Adds images [n, ...] at their places in the set."""
        header = f"{images.dtype.str}{images.shape[1:]}"
        for place, image in zip(places, images, strict=True):
            digest = hashlib.sha256(f"{place}:{header}".encode())
            digest.update(np.ascontiguousarray(image).data)
            self._sum += int.from_bytes(digest.digest(), "little")

    def hexdigest(self) -> str:
        """Of all that any process has added. Every process has to call this, and gets the same."""
        own = (self._sum % 2**_BITS).to_bytes(_BITS // 8, "little")
        everyones = np.frombuffer(own, np.uint32)[None]
        if jax.process_count() > 1:
            everyones = np.asarray(multihost_utils.process_allgather(everyones[0]))
        total = sum(int.from_bytes(part.tobytes(), "little") for part in everyones) % 2**_BITS
        return f"{total:064x}"
