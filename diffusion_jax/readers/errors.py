"""The one error of the readers, and how what others raise becomes one line of it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence


class ReadError(ValueError):
    """A file that cannot be read, or that asks for more than tensors; one line that says why."""


@contextlib.contextmanager
def decoding(path: str | os.PathLike[str] | None, what: str, raising: type[ValueError] = ReadError) -> Iterator[None]:
    """Whatever a decoder raises inside becomes one line: the file, what it should have been, and the reason.

    Decoders of damaged files raise anything: errors of their own, of zip and its compressions, of arrays that cannot
    be. Errors of the class `raising` and ReadErrors pass as they are.

    Args:
      path: the file; None where the caller puts its name before the message.
      what: the file should be, for example ".npz archive".
      raising: the class of the error.
    """
    where = "" if path is None else f"{path}: "
    try:
        yield
    except (ReadError, raising):
        raise
    except FileNotFoundError:
        raise raising(f"{where}no such file") from None
    except OSError as error:
        raise raising(f"{where}cannot be read ({reason(error)})") from None
    except BaseException as error:
        # the panics of Rust's extensions are no Exceptions, and are told apart by their name only
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise raising(f"{where}is no readable {what} ({reason(error)})") from None


def one_line(error: object, longest: int = 200) -> str:
    """The text of an error in one line of at most `longest` characters; its class where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def few(names: Sequence[str], room: int = 90) -> str:
    """The first of many names, for a message that counts them: as many as so many characters hold, at least one."""
    shown = [names[0][:room]]
    for name in names[1:]:
        if sum(map(len, shown)) + len(name) > room:
            return f"{', '.join(shown)}, ..."
        shown.append(name)
    return ", ".join(shown)


def reason(error: BaseException) -> str:
    """Why a file could not be read: what the operating system said, or what the decoder did, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, KeyError):
        return f"it has no {one_line(error)}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return one_line(error)
