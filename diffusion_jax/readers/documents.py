"""JSON files, whoever wrote them: one object, or one a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from diffusion_jax.readers.errors import ReadError, reason


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file in UTF-8. Raises ReadError, in one line that names the file."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ReadError(f"{path}: cannot be read as JSON ({reason(error)})") from None
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> Any:
    """The content of a text in JSON. Raises ReadError, in one line that begins with where the text was found."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReadError(f"{where}: cannot be read as JSON ({reason(error)})") from None


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON object in a file. Raises ReadError, in one line that names the file."""
    return _object(read_json(path), str(path))


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object that a text holds. Raises ReadError, in one line that begins with where the text was found."""
    return _object(parse_json(text, where), where)


def _object(content: Any, where: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ReadError(f"{where}: holds a {type(content).__name__}; it must hold a JSON object")
    return content


def read_rows(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The JSON objects of a file that has one a line, each with an integer "step".

    Lines that are none, as a full disk or an editor leaves them, are passed over. Raises ReadError, in one line that
    names the file, where it cannot be opened.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise ReadError(f"{path}: cannot be read ({reason(error)})") from None
    return [row for line in lines if (row := row_of(line)) is not None]


def row_of(line: str) -> dict[str, Any] | None:
    """The object with an integer "step" that a line holds; None where it holds none. Numbers are finite, or None."""
    try:
        row = json.loads(line, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None
    is_row = isinstance(row, dict) and isinstance(row.get("step"), int) and not isinstance(row["step"], bool)
    return row if is_row else None
