"""Writing files that are either whole or not there."""

import os
from pathlib import Path


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes bytes, or text as UTF-8, to .NAME.part in the same folder, then renames it to `path`.

    A reader, or a run that is killed, sees the old file or the new one, never a part. What a kill leaves of the part is
    written over the next time. Makes missing folders.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
