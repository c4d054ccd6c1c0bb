"""What can be set: the options of a constructor, what they mean, and the constructors that a setting chooses among.

A constructor is a class or a function. Its options are its parameters, with their types and their defaults; what they
mean stands beside it, in `described`. The command's help and the sections of a config are made of nothing else.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Constructor = Callable[..., Any]
_C = TypeVar("_C", bound=Constructor)

_TEXTS = "__option_texts__"


def described(*shared: Mapping[str, str], **own: str) -> Callable[[_C], _C]:
    """A decorator that says what the options of a constructor mean: name = "a phrase without a full stop".

    What several constructors share comes first, as tables. A subclass has its parent's texts, and may say otherwise.
    `help` shows them below the docstring.

    Raises:
      TypeError: a text for something that is no option.
    """

    texts = {name: text for table in (*shared, own) for name, text in table.items()}

    def describe(constructor: _C) -> _C:
        inherited = {**getattr(constructor, _TEXTS, {}), **texts}
        if surplus := texts.keys() - inspect.signature(constructor).parameters.keys():
            raise TypeError(f"{constructor} has no option {', '.join(sorted(surplus))}")
        setattr(constructor, _TEXTS, inherited)
        listed = "".join(f"\n  {name}: {text}." for name, text in inherited.items())
        constructor.__doc__ = f"{inspect.getdoc(constructor)}\n\nOptions:{listed}"
        return constructor

    return describe


def parameters(constructor: Any, filled: Iterable[str] = ()) -> dict[str, inspect.Parameter]:
    """The options that a constructor takes, by name, less those that the code fills in itself."""
    found = inspect.signature(constructor).parameters
    # Flax adds these two fields to every module.
    filled = {*filled, "parent", "name"} if hasattr(constructor, "apply") else set(filled)
    return {name: parameter for name, parameter in found.items() if name not in filled}


@functools.cache
def _hints(constructor: Constructor) -> dict[str, Any]:
    is_plain_class = inspect.isclass(constructor) and not dataclasses.is_dataclass(constructor)
    return typing.get_type_hints(constructor.__init__ if is_plain_class else constructor)


@dataclasses.dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
      kind: its annotation.
      default: its value where it is not given.
      text: what it means.
    """

    kind: Any
    default: Any
    text: str


def options(constructor: Constructor | None, filled: Iterable[str] = ()) -> dict[str, Option]:
    """The options of a constructor by name, {} of None; one without a default begins as None."""
    if constructor is None:
        return {}
    texts, hints = getattr(constructor, _TEXTS, {}), _hints(constructor)
    return {
        name: Option(
            hints.get(name, str),
            None if parameter.default is inspect.Parameter.empty else parameter.default,
            texts.get(name, ""),
        )
        for name, parameter in parameters(constructor, filled).items()
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Variants:
    """The constructors that a section of a config chooses among, by a field `key` of the section.

    Attributes:
      constructors: by name. Those of a section without a choice are one, whose name is "".
      default: the name of the one at first.
      filled: arguments that the code fills in, from the rest of the config or from the data.
      common: a constructor of the fields that the section has whatever it chooses.
      key: the field that chooses.
      text: what is chosen.
    """

    constructors: Mapping[str, Constructor]
    default: str = ""
    filled: tuple[str, ...] = ()
    common: Constructor | None = None
    key: str = "name"
    text: str = ""

    @property
    def has_choice(self) -> bool:
        return "" not in self.constructors

    def options(self, name: str, common: bool = True) -> dict[str, Option]:
        """Of the constructor `name`, and the common ones before them, which a section's own replace."""
        own = options(self.constructors[name], self.filled)
        return {**options(self.common), **own} if common else own


def section(constructor: Constructor, *filled: str) -> Variants:
    """A section that has the options of one constructor, less those that the code fills in."""
    return Variants({"": constructor}, filled=filled)


def admits_none(kind: Any) -> bool:
    """Whether None is a value of a type."""
    return kind is None or kind is type(None) or any(admits_none(member) for member in _members(kind))


def fitted(kind: Any, value: Any) -> Any:
    """The value as one of a type: whole numbers become floats and lists tuples where the type asks for it.

    Those in a tuple of numbers stay whole, as factors of channels have to.

    Raises:
      TypeError: the value is of another type.
    """
    members = _members(kind)
    if members:
        for member in members:
            try:
                return fitted(member, value)
            except TypeError:
                continue
        raise TypeError
    if kind is Any or (value is None and admits_none(kind)):
        return value
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        kind = type(typing.get_args(kind)[0])
    elif origin is tuple:
        if not isinstance(value, (tuple, list)):
            raise TypeError
        item = typing.get_args(kind)[0]
        return tuple(fitted(int | float if item is float else item, part) for part in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    return value


def parsed(kind: Any, text: str) -> Any:
    """The value that a text on the command line stands for.

    "None" is None where the type has it, and nothing else; tuples are written with commas, in brackets or without.

    Raises:
      TypeError: it stands for none.
    """
    if text == "None":
        if not admits_none(kind):
            raise TypeError
        return None
    if members := [member for member in _members(kind) if member is not type(None)]:
        for member in sorted(members, key=lambda member: member is str):  # whatever text is a str
            try:
                return parsed(member, text)
            except TypeError:
                continue
        raise TypeError
    origin = typing.get_origin(kind)
    if origin is tuple:
        parts = [part.strip().strip("'\"") for part in text.strip().strip("()[]").split(",")]
        item = typing.get_args(kind)[0]
        return tuple(parsed(int | float if item is float else item, part) for part in parts if part)
    if origin is typing.Literal or kind is str:
        return text
    if kind is bool:
        if text.lower() not in _BOOLS:
            raise TypeError
        return _BOOLS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise TypeError from None


_BOOLS = {"true": True, "1": True, "false": False, "0": False}
_NAMES = {int: "int", float: "float", str: "str", bool: "bool"}


def type_name(kind: Any) -> str:
    """A type in words, for messages."""
    if members := _members(kind):
        return " or ".join(type_name(member) for member in members)
    if kind is type(None):
        return "None"
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        return type_name(type(typing.get_args(kind)[0]))
    if origin is tuple:
        return f"tuple of {type_name(typing.get_args(kind)[0])}"
    return _NAMES.get(kind, str(kind))


def _members(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else ()


def check_least(least: int, **values: Any) -> None:
    """Raises ValueError for a value below `least`; None is no value."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; it must be {least} or more")


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raises ValueError for a value that is none of the choices."""
    if value not in (choices := list(choices)):
        raise unknown(name, value, choices)


def unknown(name: str, value: object, choices: Iterable[str]) -> ValueError:
    """The error for a value that is none of the choices: what it could be, and the nearest spelling."""
    choices = list(choices)
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"{name} is {value!r}; it can be {', '.join(choices)}{hint}")
