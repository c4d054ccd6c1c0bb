"""The config that a run left in its work directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import config_dict

from diffusion_jax.config import schema
from diffusion_jax.config.check import ConfigError
from diffusion_jax.readers import ReadError, read_object


def read(workdir: Path) -> config_dict.ConfigDict:
    """The config of the run; fields that are newer than it have their defaults. Raises ConfigError, in one line."""
    path = workdir / "config.json"
    try:
        content = read_object(path)
    except ReadError as error:
        raise ConfigError(str(error)) from None
    config = schema.default()
    sections = [key for key, value in config.items() if isinstance(value, config_dict.ConfigDict)]
    if any(not isinstance(content.get(key, {}), dict) for key in sections):
        raise ConfigError(f"{path}: is no config of a run")
    with config.unlocked(), config.ignore_type():
        config.update(with_tuples(content))
    return config


def with_tuples(value: Any) -> Any:
    """JSON has lists where a config has tuples."""
    if isinstance(value, dict):
        return {key: with_tuples(item) for key, item in value.items()}
    return tuple(with_tuples(item) for item in value) if isinstance(value, list) else value
