"""Lower floors of the house open things by means of higher ones: the package registers how, they ask by name."""

from collections.abc import Callable
from typing import Any

Opener = Callable[..., Any]
_OPENERS: dict[str, Opener] = {}


def register(name: str, opener: Opener) -> None:
    """Makes `opener` the one of this name; it imports what it needs when it is called."""
    _OPENERS[name] = opener


def named(name: str) -> Opener:
    """Finds the opener of this name. Raises ValueError, which says what there is, for any other one."""
    if name not in _OPENERS:
        raise ValueError(f"nothing is registered that opens {name!r}; there is {', '.join(_OPENERS) or 'nothing'}")
    return _OPENERS[name]
