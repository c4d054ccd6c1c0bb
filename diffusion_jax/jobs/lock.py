"""One command at a time in a work directory: of two that train there, neither would have the result that it prints."""

from __future__ import annotations

import contextlib
import datetime
import errno
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax

from diffusion_jax.config import ConfigError
from diffusion_jax.readers import ReadError, read_object
from diffusion_jax.training.logging import say

FILE = ".lock"
# What a file system says that has no locks.
_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """Holds the work directory, which is there, while a command writes to it; process 0 holds it for all.

    The lock belongs to the open file DIR/.lock, so that it ends with the process, however that ends; the file stays and
    says who held it last. Raises ConfigError, one line that says who holds it now, where another command does.
    """
    if jax.process_index() != 0:
        yield
        return
    try:
        import fcntl
    except ImportError:  # no POSIX
        say(f"warning: {workdir} is not locked; start no second command there")
        yield
        return
    path = workdir / FILE
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--workdir {workdir}: cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--workdir {workdir} is in use by {_holder(path)}; wait for that, end it, or name another --workdir"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise ConfigError(f"{path}: cannot be locked: {error.strerror}") from error
            say(f"warning: {workdir} lies where nothing can be locked; start no second command there")
        file.truncate(0)
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        json.dump({"process": os.getpid(), "host": socket.gethostname(), "since": since}, file)
        file.flush()
        yield


def _holder(path: Path) -> str:
    try:
        told = read_object(path)
        return f"process {told['process']} on {told['host']} since {told['since']}"
    except (ReadError, KeyError):  # it has only just begun
        return "another command"
