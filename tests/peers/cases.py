"""How a case is recorded, and how arrays of the two sides are compared."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def agree(
    record_property: Callable[[str, object], None],
    kind: str,
    ours: Callable[[], np.ndarray],
    theirs: np.ndarray,
    tolerance: float,
) -> None:
    """Compares by the largest difference over the largest of the peer's magnitudes; a refusal counts under its name.

    `ours` may raise ValueError: its message is the name under which the case is refused. Any other error fails, and so
    do values that are not finite where the peer's are.
    """
    try:
        got = np.asarray(ours(), np.float64)
    except ValueError as error:
        message = str(error)
        assert "\n" not in message and len(message) <= 300, message
        record_property("peer", (kind, f"refused: {message[:100]}"))
        return
    wanted = np.asarray(theirs, np.float64)
    assert got.shape == wanted.shape
    difference = np.abs(got - wanted).max() / max(np.abs(wanted).max(), 1e-12)
    assert difference <= tolerance, f"{kind}: off by {difference:.2e} of the largest value"
    record_property("peer", (kind, "agree"))
