"""What the jobs of a run leave for the report, read back: a damaged file is one line that says how to make it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diffusion_jax import readers
from diffusion_jax.config import ConfigError
from diffusion_jax.jobs.job import Job
from diffusion_jax.jobs.table import made_by


def require(workdir: Path, job: Job) -> None:
    """Raises ConfigError, naming the file and the mode that writes it, for the first that the job needs in vain."""
    for name in job.needs:
        if not (workdir / name).is_file():
            raise ConfigError(
                f"{workdir / name} is missing, which --mode {job.name} needs; run --mode {made_by(name)} first"
            )


def read(workdir: Path, name: str) -> dict[str, Any]:
    """The object in a JSON file of the run; empty where there is none. Raises ConfigError where it cannot be read."""
    path = workdir / name
    if not path.exists():
        return {}
    try:
        return readers.read_object(path)
    except readers.ReadError as error:
        raise ConfigError(f"{error}; run --mode {made_by(name)} again") from None


def written(content: Mapping[str, Any]) -> dict[str, Any]:
    """What `session.write_json` makes of it, as it is read back."""
    return json.loads(json.dumps(dict(content), default=str))


def rows(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, the newest of each step, in their order."""
    path = workdir / "metrics.jsonl"
    found = readers.read_rows(path)
    for row in found:
        for name, value in row.items():
            if value is not None:  # what was not finite
                number(row, name, path)
    return [row for _, row in sorted({row["step"]: row for row in found}.items())]


def like(record: Mapping[str, Any], settings: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """What a record has of the settings. Raises ConfigError for a value of another kind: text, a number or nothing."""
    found = {name: record[name] for name in settings if name in record}
    for name, value in found.items():
        kinds = str if isinstance(settings[name], str) else (int, float, type(None))
        if not isinstance(value, kinds):
            wanted = "text" if kinds is str else "a number"
            raise ConfigError(f"{where}: {name} is {readers.one_line(repr(value), 60)}; it must be {wanted}")
    return found


def number(record: Mapping[str, Any], name: str, where: Path) -> float:
    """A number of a record; 0 where it has none. Raises ConfigError for anything else."""
    value = record.get(name, 0.0)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{where}: {name} is {readers.one_line(repr(value), 60)}; it must be a number")
    return float(value)


def picture(workdir: Path, name: str) -> Path | None:
    """A picture of the run; None where there is none. Raises ConfigError where it cannot be shown."""
    path = workdir / name
    if not path.exists():
        return None
    try:
        with Image.open(path, formats=("PNG", "GIF")) as opened:
            opened.seek(getattr(opened, "n_frames", 1) - 1)
            opened.load()
    except Exception as error:  # a damaged picture raises anything
        raise ConfigError(
            f"{path}: is no picture, or a damaged one ({readers.reason(error)}); run --mode {made_by(name)} again"
        ) from None
    return path


def text(workdir: Path, name: str) -> str:
    """A text file of the run; empty where there is none."""
    path = workdir / name
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
