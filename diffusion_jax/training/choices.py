"""The error for a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(field: str, value: object, choices: Iterable[str]) -> ValueError:
    """One line that names the field, what it got, what it could be and the nearest spelling."""
    choices = list(choices)
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{field} is {value!r}; it can be {', '.join(choices)}{hint}")
