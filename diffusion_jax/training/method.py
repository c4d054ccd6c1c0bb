"""What the training loop asks of a method and of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax

from diffusion_jax.turn import Turn

# A tree of arrays [B, ...], of which "position" is the place of each example in the global batch.
Batch = Mapping[str, Any]
# name -> (values, weights), arrays of one shape; the reported value is sum(values * weights) / sum(weights)
Metrics = Mapping[str, tuple[jax.Array, jax.Array]]
# Of (parameters, batch, key, step): the scalar to minimise and what to report, see `Method.loss`.
Loss = Callable[[Any, Batch, jax.Array, jax.Array], tuple[jax.Array, Metrics]]


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
class AlternatingMethod(Protocol):
    """A method with several losses that are minimised in turn, such as those of two networks that play a game.

    Each part of the parameters has an optimiser of its own, which the turns of that part share. A step takes its turns
    one after the other, on one batch and with one key, and each sees what the turn before has changed.
    """

    def init(self, key: jax.Array, batch: Batch) -> dict[str, Any]:
        """The parameters of each part, for batches shaped like `batch`."""
        ...

    @property
    def turns(self) -> Sequence[Turn]:
        """The turns of a step in their order. The loss of the first is reported as "loss" too; it is in every step."""
        ...

    @property
    def drawn_with(self) -> str:
        """The part whose moving average is kept, to draw with."""
        ...


@runtime_checkable
class WholeBatchMethod(Protocol):
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
        """The state after an update, from the prepared batch and the metrics of its examples, both in its order.

        Of a turn that was not taken all weights are 0.
        """
        ...


class Batches(Protocol):
    """An endless iterator of this host's part of each batch: a tree of arrays [b, ...].

    `get_state` returns what JSON can hold, the same on every host, and `set_state` continues from there.
    """

    def __next__(self) -> Mapping[str, Any]: ...

    def get_state(self) -> Any: ...

    def set_state(self, state: Any) -> None: ...


# The one part of a method that is not in parts.
WHOLE = ""


def turns_of(method: Method | AlternatingMethod) -> Sequence[Turn]:
    """The turns of a step: of a method with one loss a single one, which trains all parameters.

    Raises ValueError where the first turn is not in every step, or two have the same name.
    """
    if not isinstance(method, AlternatingMethod):
        return (Turn("", WHOLE, method.loss),)
    turns = method.turns
    if turns[0].every != 1 or any(turn.every < 1 for turn in turns):
        raise ValueError(f"turns are taken every {[turn.every for turn in turns]} steps; the first must be in each")
    if len({turn.name for turn in turns}) < len(turns):
        raise ValueError(f"turns are called {', '.join(turn.name for turn in turns)}; each needs a name of its own")
    return turns


def drawn_with(method: Method | AlternatingMethod) -> str:
    """The part of the parameters that is averaged and drawn with."""
    return method.drawn_with if isinstance(method, AlternatingMethod) else WHOLE


def updates_per_step(method: Method | AlternatingMethod, part: str) -> float:
    """How often a step updates a part, on average."""
    return sum(1 / turn.every for turn in turns_of(method) if turn.part == part)


def pick(tree: Any, part: str) -> Any:
    """One part of a tree that is in parts."""
    return tree if part == WHOLE else tree[part]


def put(tree: Any, part: str, value: Any) -> Any:
    """The tree with another value of one part."""
    return value if part == WHOLE else {**tree, part: value}


def by_part(values: Any) -> Mapping[str, Any]:
    """Part -> value, of a mapping or of the value of the one part."""
    return values if isinstance(values, Mapping) else {WHOLE: values}
