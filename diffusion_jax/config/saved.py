"""The config that a run left in its work directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusion_jax.config import schema
from diffusion_jax.config.experiment import Experiment
from diffusion_jax.config.section import ConfigError
from diffusion_jax.options import admits_none
from diffusion_jax.readers import ReadError, read_object


def read(workdir: Path) -> Experiment:
    """The config of the run; fields that are newer than it have their defaults. Raises ConfigError, in one line.

    Of runs that wrote the options of every choice, those that the choice does not have are passed over.
    """
    path = workdir / "config.json"
    try:
        content = read_object(path)
    except ReadError as error:
        raise ConfigError(str(error)) from None
    try:
        return _restored(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: is no config of a run ({error})") from None


def _restored(content: Any) -> Experiment:
    config = schema.default()
    if not isinstance(content.get("method", {}), dict):
        raise ConfigError("it is no object with sections")
    if "name" in content.get("method", {}):
        config.method.name = content["method"]["name"]
    for key in config.run:
        if key in content:
            config[key] = content[key]
    for name, section in config.sections():
        said = content.get(name, {})
        if not isinstance(said, dict):
            raise ConfigError(f"{name} is no section")
        if section.variants.has_choice and section.variants.key in said:
            section[section.variants.key] = said[section.variants.key]
        own = section.variants.options(section.choice, common=False)
        # Records of the options of every choice have others than these; null there is the default of an own option.
        has_all = section.variants.has_choice and bool(said.keys() - {*section.options(), section.variants.key})
        for field, option in section.options().items():
            is_default = said.get(field) is None and (not admits_none(option.kind) or (has_all and field in own))
            if field in said and not is_default:
                section[field] = said[field]
    return config
