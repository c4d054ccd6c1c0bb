"""The fields of a config in words, for the command's help."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from diffusion_jax.config.experiment import Experiment
from diffusion_jax.config.section import Section
from diffusion_jax.options import admits_none

WIDTH = 120
_COLUMN = 52


def fields(config: Experiment) -> Iterator[tuple[str, Any, str]]:
    """(dotted path, value, what it means) of every field."""
    for name, option in config.run.options().items():
        yield name, config[name], option.text
    for prefix, section in config.sections():
        if section.variants.has_choice:
            yield f"{prefix}.{section.variants.key}", section.choice, _choice(section)
        for name, option in section.options().items():
            text = option.text
            if admits_none(option.kind) and option.default is not None and "None" not in text:
                text += "; None: none"
            yield f"{prefix}.{name}", section[name], text


def help_text(config: Experiment) -> str:
    """A line or more for each field: how it is set, to what it is, and what it means."""
    lines = []
    section = ""
    for path, value, text in fields(config):
        if path.partition(".")[0] != section and "." in path:
            section = path.partition(".")[0]
            lines.append("")
        setting = f"  --config.{path}={_written(value)}"
        if len(setting) >= _COLUMN:
            lines.append(setting)
            setting = ""
        lines += textwrap.wrap(
            f"{setting:{_COLUMN}}{text}", WIDTH, subsequent_indent=" " * _COLUMN, break_on_hyphens=False
        ) or [setting]
    return "\n".join(lines)


def _choice(section: Section) -> str:
    others = ", ".join(section.variants.constructors)
    return f"{section.variants.text}: {others}" if section.variants.text else others


def _written(value: Any) -> str:
    return ",".join(str(part) for part in value) if isinstance(value, tuple) else str(value)
