"""A metric is one record: its name, what it needs of either side, its numbers, and which way is better."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion_jax.metrics.distances import Gaussian
from diffusion_jax.metrics.protocols import INCEPTION, Protocol


class Need(enum.StrEnum):
    """A metric can need these of a side.

    PAIRS: image i of either side belongs to image i of the other.
    """

    MOMENTS = "moments"
    SPATIAL = "moments of spatial features"
    ROWS = "images"
    LOGITS = "logits"
    LABELS = "labels"
    PROMPTS = "prompts"
    PAIRS = "pairs"


@dataclasses.dataclass(frozen=True)
class Side:
    """A side is one measured set: moments where they are known, rows where images were measured.

    Attributes:
      features, spatial: moments.
      rows, logits: features [N, d] and logits without bias [N, 1008].
      num_images: None for statistics that do not say.
      labels, prompts: the class int [N], and the texts, that the images were asked for by.
    """

    features: Gaussian | None
    spatial: Gaussian | None = None
    rows: np.ndarray | None = None
    logits: np.ndarray | None = None
    num_images: int | None = None
    labels: np.ndarray | None = None
    prompts: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A comparison is what a metric is computed from; what it needs is there.

    Attributes:
      reference: a side without anything for metrics that need none.
      intervals: whether standard errors are wanted, which take time.
    """

    generated: Side
    reference: Side
    protocol: Protocol
    intervals: bool = True

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Gives (those of the generated images, those of the reference)."""
        assert self.generated.rows is not None and self.reference.rows is not None
        return self.generated.rows, self.reference.rows


def any_features(extractor: str) -> str | None:
    """Gives None: the metric can be computed of these features."""
    return None


def inception_only(extractor: str) -> str | None:
    """Says why the metric cannot be computed of these features; None for Inception's."""
    return None if extractor == INCEPTION else f"needs Inception's features, not those of {extractor}"


def suffixed(name: str, extractor: str) -> str:
    """Puts the features that a number is of behind its name; without any, it is Inception's."""
    return name if extractor == INCEPTION else f"{name}_{slug(extractor)}"


def slug(extractor: str) -> str:
    """Makes the name of an extractor a part of a key."""
    return extractor.replace("-", "_")


@dataclasses.dataclass(frozen=True, eq=False)
class Metric:
    """A metric is known to commands and to training by a line of :data:`diffusion_jax.metrics.table.METRICS`.

    Attributes:
      name: by which it is asked for. help: what it is, for --help.
      compute: its numbers, by name.
      number: the name of the one that stands for it, of these features.
      of_generated, of_reference: what it needs of either side. Nothing of the reference: there need be none.
      for_intervals: what it also needs of the generated side for standard errors.
      higher_is_better: the beginnings of the names of its numbers that are better when higher; others are distances.
      refuses: why it cannot be computed of an extractor's features; None where it can.
      caution: what a reader of its numbers should know; None for nothing.
    """

    name: str
    help: str
    compute: Callable[[Comparison], dict[str, Any]]
    number: Callable[[str], str]
    of_generated: frozenset[Need]
    of_reference: frozenset[Need] = frozenset()
    for_intervals: frozenset[Need] = frozenset()
    higher_is_better: tuple[str, ...] = ()
    refuses: Callable[[str], str | None] = any_features
    caution: Callable[[Comparison], str | None] = lambda compared: None
