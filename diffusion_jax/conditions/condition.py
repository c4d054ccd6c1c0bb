"""What a condition is to data, networks, guidance and sampling: none of them knows its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.data.source import Source


class Condition:
    """Something that images can be asked for, as it is known of the examples of a data set.

    A file of `conditions/` has one as its `CONDITION`, by the name that the values have in an example's "condition".

    Attributes:
      name: of the values.
      argument: the keyword of the networks that takes them.
    """

    name: ClassVar[str]
    argument: ClassVar[str]

    @classmethod
    def of(cls, source: Source) -> Self:
        """The condition as the data have it. Raises ValueError, in one line, where they have no such values."""
        raise NotImplementedError

    @property
    def network_options(self) -> Mapping[str, Any]:
        """Options of a network's constructor that follow from the data, for constructors that have them."""
        return {}

    def encode(self, values: np.ndarray) -> Any:
        """What the network is told of the values [b, ...] of some examples: a tree of arrays [b, ...], on the host."""
        return values

    def null(self, count: int) -> Any:
        """What stands for nothing, for so many images: a tree of arrays [count, ...] like that of `encode`."""
        raise NotImplementedError

    def drop(self, encoded: Any, dropped: jax.Array) -> Any:
        """The encoded values [B, ...] with nothing in the place of those that are dropped, bool [B]."""
        nothing = self.null(len(dropped))

        def choose(value: jax.Array, null: jax.Array) -> jax.Array:
            return jnp.where(dropped.reshape(-1, *(1,) * (value.ndim - 1)), null, value)

        return jax.tree.map(choose, encoded, nothing)

    def requests(self, source: Source, indices: np.ndarray) -> Any:
        """What the images at `indices` of a sampling run are asked for unless that is said: encoded, [N, ...]."""
        raise NotImplementedError


Conditions = Mapping[str, Condition]


def encoders(conditions: Conditions) -> dict[str, Any]:
    """Name -> `encode`, as the data pipeline asks for them."""
    return {name: condition.encode for name, condition in conditions.items()}


def arguments(conditions: Conditions, encoded: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a network that is told the conditions."""
    return {condition.argument: encoded[name] for name, condition in conditions.items()}


def nulls(conditions: Conditions, count: int) -> dict[str, Any]:
    """What stands for nothing of each condition, for so many images."""
    return {name: condition.null(count) for name, condition in conditions.items()}
