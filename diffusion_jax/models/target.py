"""Which kind of device a program is traced for, where networks choose a kernel by it."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_target: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


def platform() -> str:
    """ "cpu", "gpu" or "tpu": what `tracing_for` has named, else the process's default backend."""
    return _target.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Programs traced within are for that platform: a compiler's for TPUs runs on a host that has only a CPU."""
    token = _target.set(name)
    try:
        yield
    finally:
        _target.reset(token)
