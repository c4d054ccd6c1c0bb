"""What a checkpoint's settings can be, checked before anything is built from them.

A config.json may hold anything. Numbers out of all proportion would keep the machine busy for minutes, or ask for more
memory than there is, before they turn out not to fit the weights; values of another kind would end in a traceback.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from diffusion_jax.hub.files import CheckpointError

LARGEST = 2**20  # of integers that state a size or a count; vocabularies have up to 2^18
MOST = 64  # entries of a list of them, which has one for each level or block
# Settings that say how often a block is repeated.
COUNTS = re.compile(
    r"num_(hidden_|single_)?layers|(reverse_transformer_|transformer_)?layers_per_block|depth|num_blocks"
    r"|num_res_blocks|num_(encoder|decoder)_blocks"
)
SLACK = 16  # blocks that a config may state beyond those of the weights, for a message that names the missing ones


def check_settings(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuses settings of a kind that their default is not, and numbers out of all proportion.

    Args:
      config: the settings.
      defaults: of the class, the settings that are read; empty where the class has none, and all are looked at.

    Raises:
      CheckpointError: naming the first.
    """
    for field, value in config.items():
        if defaults and field not in defaults:
            continue
        _check_kind(field, value, defaults.get(field))
        for number in _numbers(field, value):
            if not math.isfinite(number):
                raise CheckpointError(f"{field}={number}: it must be a finite number")
            if isinstance(number, int) and abs(number) > LARGEST:
                raise CheckpointError(f"{field}={_short(number)}: integers go up to {LARGEST}")


def check_counts(config: Mapping[str, Any], tensors: Iterable[str]) -> None:
    """Refuses repetitions of blocks far beyond those that the names of the weights count.

    Raises:
      CheckpointError: naming the first.
    """
    counted = 1 + max((int(digits) for name in tensors for digits in re.findall(r"\d{1,6}", name)), default=0)
    for field, value in config.items():
        if not COUNTS.fullmatch(field):
            continue
        for number in _numbers(field, value):
            if number > counted + SLACK:
                raise CheckpointError(
                    f"{field}={_short(number)}: the names of the weights count no more than {counted}"
                )


def _check_kind(field: str, value: Any, default: Any) -> None:
    """None goes with any kind and any kind with None; a list may stand for the value at each level."""
    if value is None or default is None:
        return
    lists = isinstance(default, list | tuple)
    if lists and not isinstance(value, list | tuple):
        raise CheckpointError(f"{field}={_short(value)}: it must be a list")
    sample = next(iter(_leaves(default)), None)
    for leaf in _leaves(value):
        if sample is None or leaf is None:
            continue
        if _kind(leaf) is not _kind(sample):
            kinds = {bool: "true or false", int: "a number", str: "a text"}
            raise CheckpointError(f"{field}: got {_short(leaf)}; it must be {kinds[_kind(sample)]}")
        if lists and isinstance(sample, int) and isinstance(leaf, float):
            raise CheckpointError(f"{field}: got {_short(leaf)}; it must be a whole number")


def _kind(value: Any) -> type:
    """int stands for every number: many settings are written 1 and 1.0."""
    return bool if isinstance(value, bool) else int if isinstance(value, int | float) else type(value)


def _short(value: Any) -> str:
    return f"{value!r:.60}"


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _numbers(field: str, value: Any) -> Iterable[int | float]:
    """The numbers of a setting, which may be a list of lists; other values have none."""
    if isinstance(value, list | tuple):
        if len(value) > MOST and any(isinstance(part, int | float | list) for part in value):
            raise CheckpointError(f"{field}: a list of {len(value)}; {MOST} is the most that is read")
        for part in value:
            yield from _numbers(field, part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value
