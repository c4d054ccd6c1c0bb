"""Averages over a logging interval, summed on the device so that no step waits for the host."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.training.gradients import Sums

Collection = clu.metrics.Collection

# Reported as sums over the interval.
COUNTS = ("bad_steps",)


@functools.cache
def _collection(names: tuple[str, ...]) -> type[Collection]:
    # One class for each set of names: a new class would be a new tree type, and recompile whatever takes it.
    return Collection.create(**dict.fromkeys(names, clu.metrics.Average))


def from_sums(sums: Mapping[str, tuple[Any, Any]]) -> Collection:
    """A clu collection of averages from name -> (sum of weighted values, sum of weights)."""
    averages = {
        name: clu.metrics.Average(jnp.asarray(total, jnp.float32), jnp.asarray(weight, jnp.float32))  # pyright: ignore
        for name, (total, weight) in sums.items()
    }
    empty = _collection(tuple(sorted(averages))).empty()
    return empty.replace(**averages)  # pyright: ignore[reportAttributeAccessIssue]


@jax.jit
def _merge(collected: Collection, sums: Sums) -> Collection:
    return collected.merge(from_sums(sums))


def accumulate(collected: Collection | None, sums: Sums) -> Collection:
    """Adds one step's sums; None starts a new interval. Does not wait for the step."""
    return from_sums(sums) if collected is None else _merge(collected, sums)


def to_sums(collected: Collection) -> dict[str, tuple[float, float]]:
    """The sums on the host, exactly: `from_sums` gives the same collection back. Waits for the steps."""
    averages = {name: value for name, value in vars(jax.device_get(collected)).items() if name != "_reduction_counter"}
    return {name: (float(average.total), float(average.count)) for name, average in averages.items()}


def averages(collected: Collection) -> dict[str, float]:
    """name -> average over the interval (the sum of COUNTS), less what had no weight in it. Waits for the steps."""
    sums = to_sums(collected)
    return {
        name: total if name in COUNTS else float(np.float32(total) / np.float32(weight))
        for name, (total, weight) in sums.items()
        if weight
    }
