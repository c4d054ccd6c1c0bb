"""The one error of the readers."""


class ReadError(ValueError):
    """A file that cannot be read, or that asks for more than tensors; one line that says why."""
