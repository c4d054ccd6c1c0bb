"""The class of an image, by an integer."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.conditions.condition import Condition
from diffusion_jax.data.source import LABEL, Source


@dataclasses.dataclass(frozen=True)
class Label(Condition):
    """Labels from 0 up to num_classes, which itself stands for no class."""

    num_classes: int

    name: ClassVar = LABEL
    argument: ClassVar = "class_labels"

    @classmethod
    def of(cls, source: Source) -> Self:
        if source.num_classes is None:
            raise ValueError("the data has no labels: sort the images into one folder for each class")
        return cls(source.num_classes)

    @property
    def network_options(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    def encode(self, values: np.ndarray) -> np.ndarray:
        return values.astype(np.int32)

    def null(self, count: int) -> jax.Array:
        return jnp.full(count, self.num_classes, jnp.int32)

    def requests(self, source: Source, indices: np.ndarray) -> np.ndarray:
        """Each class in turn."""
        return (indices % self.num_classes).astype(np.int32)


CONDITION = Label
