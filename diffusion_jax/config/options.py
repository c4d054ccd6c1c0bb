"""Config fields from the signatures of what they configure, so that the two can never disagree.

A section such as `sampling` has a `name`, which picks a constructor from a registry, and the keyword options of all the
registry's constructors, unset. An unset option leaves the constructor's own default in force.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import config_dict

Registry = Mapping[str, Callable[..., Any]]

_FIELD_TYPES = (bool, int, float, str, tuple)


def parameters(constructor: Any, excluded: Iterable[str] = ()) -> dict[str, inspect.Parameter]:
    """The options that a constructor takes, by name, less those that the code fills in itself."""
    found = inspect.signature(constructor).parameters
    # Flax adds these two fields to every module.
    excluded = {*excluded, "name", "parent"} if dataclasses.is_dataclass(constructor) else set(excluded)
    return {name: parameter for name, parameter in found.items() if name not in excluded}


def field_type(constructor: Callable[..., Any], name: str) -> type:
    """The type of a config field: the first plain type that the annotation names; str for anything else."""
    owner = constructor if not inspect.isclass(constructor) else constructor.__init__
    hints = typing.get_type_hints(constructor if dataclasses.is_dataclass(constructor) else owner)
    return _plain_type(hints.get(name, str))


def _plain_type(annotation: Any) -> type:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        plain = [_plain_type(member) for member in typing.get_args(annotation) if member is not type(None)]
        return next((kind for kind in plain if kind is not str), str)
    if origin is not None:
        return origin if origin in _FIELD_TYPES else str
    return annotation if annotation in _FIELD_TYPES else str


def named_section(registry: Registry, name: str, excluded: Iterable[str] = ()) -> config_dict.ConfigDict:
    """A section that picks `name` from the registry, with every option of every constructor unset."""
    section = config_dict.ConfigDict({"name": name})
    for constructor in registry.values():
        for option in parameters(constructor, excluded):
            if option not in section:
                section[option] = config_dict.placeholder(field_type(constructor, option))
    return section


def plain_section(constructor: Callable[..., Any], excluded: Iterable[str] = ()) -> config_dict.ConfigDict:
    """A section with the options of one constructor at their defaults; those without a default are unset."""
    section = config_dict.ConfigDict()
    for option, parameter in parameters(constructor, excluded).items():
        if parameter.default is None or parameter.default is inspect.Parameter.empty:
            section[option] = config_dict.placeholder(field_type(constructor, option))
        else:
            section[option] = parameter.default
    return section


def chosen(section: config_dict.ConfigDict) -> dict[str, Any]:
    """The options of a named section that are set."""
    return {key: value for key, value in section.items() if key != "name" and value is not None}
