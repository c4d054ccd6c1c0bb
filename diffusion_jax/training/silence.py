"""Keeps off the console what Orbax prints beside the exceptions that it raises.

Besides a log that tells of every step of every save, a failed read or write leaves callbacks and coroutines behind that
complain, from other threads and later, by hundreds of tracebacks. What went wrong is in the exception itself.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable
from typing import Any

_ORBAX = f"{os.sep}orbax{os.sep}"
_TENSORSTORE = re.compile(r"tensorstore/|OCDBT")


@functools.cache
def silence_orbax() -> None:
    """From now on, in this process. What does not come from Orbax is heard as before."""
    logging.getLogger("absl").addFilter(_from_elsewhere)
    logging.getLogger("asyncio").addFilter(_from_elsewhere)
    sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)


def _from_elsewhere(record: logging.LogRecord) -> bool:
    if record.name != "asyncio":
        return _ORBAX not in record.pathname
    # asyncio logs for others: it names the file of a task in the text, that of a bare future in the traceback alone.
    # An exception that TensorStore has set has no traceback either, but a message that names its database.
    _, error, trace = record.exc_info or (None, None, None)
    if error is not None and trace is None:
        return not _TENSORSTORE.search(str(error))
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(trace)]
    return not any(_ORBAX in text for text in (record.getMessage(), *files))


def _unraisable(otherwise: Callable[[Any], object], unraisable: Any) -> None:
    code = getattr(unraisable.object, "cr_code", None)
    abandoned = code is not None and _ORBAX in code.co_filename
    # TensorStore reports to the event loop that Orbax ran a read or write in, and that is gone after a failure.
    late = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
    if not (abandoned or late):
        otherwise(unraisable)
