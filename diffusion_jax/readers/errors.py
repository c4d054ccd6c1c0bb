"""The one error of the readers, and how what others raise becomes one line of it."""

# Longer messages hold the offending value whole, which may be a megabyte.
LONGEST = 300


class ReadError(ValueError):
    """A file that cannot be read, or that asks for more than tensors; one line that says why."""


def one_line(error: object, longest: int = 200) -> str:
    """The text of an error in one line of at most `longest` characters; its class where it says nothing."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def reason(error: BaseException) -> str:
    """Why a file could not be read: what the operating system said, or what the decoder did, in one line."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not UTF-8"
    return one_line(error)
