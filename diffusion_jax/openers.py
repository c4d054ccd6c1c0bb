"""Lower floors of the house open things by means of higher ones: the package registers how, they ask by name.

Importing the package imports this file, which therefore imports nothing.
"""

_OPENERS: dict = {}


def register(name: str, opener) -> None:
    """Makes the function `opener` the one of this name; it imports what it needs when it is called."""
    _OPENERS[name] = opener


def named(name: str):
    """Finds the opener of this name. Raises ValueError, which says what there is, for any other one."""
    if name not in _OPENERS:
        raise ValueError(f"nothing is registered that opens {name!r}; there is {', '.join(_OPENERS) or 'nothing'}")
    return _OPENERS[name]
