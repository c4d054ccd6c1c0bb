"""The work directory of a run: made, held to one run by its config.json, and written to by one process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from diffusion_jax.config import ConfigError, Experiment, saved
from diffusion_jax.config.check import flatten
from diffusion_jax.figures.files import write_atomically

# A run may be resumed with other values of these; anything else would make it another run.
CHANGEABLE = (
    *("name", "debug", "training.num_steps", "training.log_every", "training.checkpoint_every"),
    *("training.max_to_keep", "training.max_bad_steps"),
)
CHANGEABLE_SECTIONS = (
    "sampling.",
    "evaluation.",
    "mesh.",
    "data.num_workers",
    "data.path",
    "data.data_dir",
    "latents.vae",
)


class WorkDirectory:
    """The work directory at `path`. Nothing is made or written before it is asked for."""

    def __init__(self, path: Path):
        self.path = path.absolute()

    @property
    def paints(self) -> bool:
        """Whether this process writes files; of several, process 0."""
        return jax.process_index() == 0

    def make(self) -> None:
        """Makes the folder, from process 0. Raises ConfigError where it cannot be."""
        if self.paints:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--workdir {self.path}: cannot be made: {error.strerror}") from error

    def write_config(self, config: Experiment) -> None:
        """Leaves config.json, by which a later command is held to the same run."""
        if not self.paints:
            return
        try:
            self.write_json("config.json", config.to_dict())
        except OSError as error:
            raise ConfigError(f"--workdir {self.path}: cannot be written: {error.strerror}") from error

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a file of the work directory whole or not at all."""
        write_json(self.path / name, content)

    def check_same_run(self, config: Experiment) -> None:
        """Raises ConfigError where the run that was begun here is another one than that of `config`."""
        path = self.path / "config.json"
        if not path.exists() or not (self.path / "checkpoints").exists():
            return
        try:
            before = dict(flatten(saved.read(self.path)))
        except ConfigError as error:
            raise ConfigError(f"{error}; name another --workdir") from error
        for field, value in flatten(config):
            if field in CHANGEABLE or field.startswith(CHANGEABLE_SECTIONS) or field not in before:
                continue
            if before[field] != value:
                raise ConfigError(
                    f"config.{field} is {value!r}, but the run in {self.path} was begun with {before[field]!r}; "
                    "name another --workdir, or set it back"
                )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    write_atomically(path, json.dumps(content, indent=2, default=str) + "\n")
