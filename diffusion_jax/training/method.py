"""What the training loop asks of a method and of the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

Batch = Mapping[str, jax.Array]
# name -> (values, weights), arrays of one shape; the reported value is sum(values * weights) / sum(weights)
Metrics = Mapping[str, tuple[jax.Array, jax.Array]]


class Method(Protocol):
    """What can be trained."""

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Parameters, a tree of arrays, for batches shaped like `batch`."""
        ...

    def loss(self, params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The scalar to minimise and what to report.

        The scalar is a mean over the examples of the batch, and what is random about an example follows from
        fold_in(key, batch["position"][i]): then the number of devices, hosts and accumulation steps changes nothing.
        `step` is an int32 scalar, the number of updates made before.
        """
        ...


@runtime_checkable
class WholeBatchMethod(Method, Protocol):
    """A method that looks at the whole batch, before it is cut into parts, or at the losses of earlier batches.

    Its state is a tree of arrays, saved with the parameters; every device and accumulation step sees it whole.
    """

    def init_state(self) -> Any:
        """What there is to remember before the first update; () for a method that remembers nothing."""
        ...

    def prepare(self, state: Any, batch: Batch, key: jax.Array) -> Batch:
        """The batch [B, ...] as `loss` will get it, in parts, with the same key."""
        ...

    def update_state(self, state: Any, batch: Batch, metrics: Metrics) -> Any:
        """The state after an update, from the prepared batch and the metrics of its examples, both in its order."""
        ...


class Batches(Protocol):
    """An endless iterator of this host's part of each batch: name -> array [b, ...].

    `get_state` returns what JSON can hold, the same on every host, and `set_state` continues from there.
    """

    def __next__(self) -> Mapping[str, np.ndarray]: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...
