"""Rows go in batches of one shape, so that one program serves them all: the last is filled up and cut again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np


def rounded_up(count: int, multiple: int) -> int:
    """Gives the next number of rows that divides among so many, devices for example."""
    return -(-count // multiple) * multiple


def places(count: int, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (places int [size], how many of them are wanted): each of `count` once, the last one again to the end."""
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1), min(size, count - start)


def filled(tree: Any, size: int) -> Any:
    """Fills arrays [n, ...], n from 1 to `size`, up to [size, ...] with their last row."""
    return jax.tree.map(lambda array: array if len(array) == size else _rows(array, np.arange(size)), tree)


def mapped(function: Callable[[Any], Any], tree: Any, size: int) -> Any:
    """Calls `function` on all rows, batch by batch.

    Args:
      function: from a tree of arrays [size, ...] to one.
      tree: arrays [N, ...], N at least 1.
      size: of a batch.

    Returns:
      What the function gives, as NumPy arrays [N, ...].
    """
    count = len(jax.tree.leaves(tree)[0])
    parts = []
    for chosen, wanted in places(count, size):
        part = function(jax.tree.map(lambda array, rows=chosen: _rows(array, rows), tree))
        parts.append(jax.tree.map(lambda leaf, kept=wanted: np.asarray(leaf)[:kept], part))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def _rows(array: Any, rows: np.ndarray) -> Any:
    array = array if isinstance(array, jax.Array) else np.asarray(array)
    return array[np.minimum(rows, len(array) - 1)]
