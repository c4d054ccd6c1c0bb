"""A section of a config: the options of the constructor that it chooses, at their defaults until set."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from ml_collections import config_dict

from diffusion_jax.options import Constructor, Option, Variants, fitted, options, parameters, parsed, type_name


class ConfigError(ValueError):
    """A setting that cannot be; the message is one line for the user."""


def unknown(what: str, got: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist, with the nearest that does."""
    known = list(known)
    near = difflib.get_close_matches(str(got), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it can be {', '.join(known)}"
    return ConfigError(f"{what} {got!r} does not exist; {hint}")


@contextlib.contextmanager
def errors(path: str, fields: Container[str] = ()) -> Iterator[None]:
    """Turns a ValueError into a ConfigError that names the field or the section of the config that it is about."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        line = " ".join(str(error).split())
        last = path.rpartition(".")[2]
        if line.startswith("config."):
            pass
        elif line.startswith(f"{last}."):
            line = f"config.{line}"
        elif line.partition(" ")[0] in fields:
            line = f"{path}.{line}"
        else:
            line = f"{path}: {line}"
        raise ConfigError(line) from error


class Section(config_dict.ConfigDict):
    """The fields of one choice of `variants`, and no others.

    Another choice, by assignment to the field that chooses, starts from the defaults of the constructor that it names.
    What was set before and is an option of it too is kept.

    Attributes:
      variants: what can be chosen.
      where: its dotted path from "config" on, for messages.
      given: the fields that were set.
    """

    variants: Variants
    where: str
    given: set[str]

    def __init__(self, variants: Variants, where: str, on_choice: Callable[[], None] | None = None):
        super().__init__(sort_keys=False)
        for name, value in (("variants", variants), ("where", where), ("given", set()), ("_on_choice", on_choice)):
            object.__setattr__(self, name, value)
        self._fill(variants.default, {})

    @property
    def choice(self) -> str:
        """The name of the chosen constructor."""
        return self._fields[self.variants.key] if self.variants.has_choice else ""

    @property
    def constructor(self) -> Callable[..., Any]:
        """The chosen constructor."""
        return self.variants.constructors[self.choice]

    def options(self) -> dict[str, Option]:
        """The fields beside the one that chooses."""
        return self.variants.options(self.choice)

    def arguments(self, constructor: Constructor) -> dict[str, Any]:
        """Those of the fields that are options of a constructor."""
        return {name: self[name] for name in parameters(constructor, self.variants.filled) if name in self}

    def build(self, **filled: Any) -> Any:
        """What the chosen constructor makes of its options, and of those of `filled` that it takes in their place."""
        taken = parameters(self.constructor)
        known = {name: value for name, value in filled.items() if name in taken}
        return self.constructor(**{**self.arguments(self.constructor), **known})

    def build_common(self) -> Any:
        """What the constructor of the common fields makes of them; None where there is none."""
        common = self.variants.common
        return None if common is None else common(**self.arguments(common))

    def errors(self) -> contextlib.AbstractContextManager[None]:
        """Turns a ValueError into a ConfigError that names the field of this section, or the section."""
        return errors(self.where, self)

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, config_dict.FieldReference):
            value = value.get()
        if self.variants.has_choice and key == self.variants.key:
            if value not in self.variants.constructors:
                raise unknown(f"{self.where}.{key}", value, self.variants.constructors)
            if value != self.choice:
                self._fill(value, {name: self[name] for name in self.given if name != key})
                if self._on_choice is not None:
                    self._on_choice()
        else:
            self._fields[key] = self._fitted(key, value)
        self.given.add(key)

    def __getattr__(self, attribute: str) -> Any:
        if attribute not in self._fields:
            raise AttributeError(str(unknown(f"{self.where} field", attribute, self._fields)))
        return self._fields[attribute]

    def __delitem__(self, key: str) -> None:
        raise ConfigError(f"{self.where}.{key} cannot be deleted; set it to another value")

    def set_text(self, key: str, text: str) -> None:
        """Sets a field to what a text on the command line stands for. Raises ConfigError."""
        if self.variants.has_choice and key == self.variants.key:
            self[key] = text
            return
        kind = self._option(key, text).kind
        try:
            self[key] = parsed(kind, text)
        except TypeError:
            raise ConfigError(f"{self.where}.{key} is {text!r}; it must be of type {type_name(kind)}") from None

    def update(self, *others: Any, **fields: Any) -> None:
        """Sets several fields, the one that chooses first."""
        merged = {key: value for other in (*others, fields) for key, value in other.items()}
        for key in sorted(merged, key=lambda key: key != self.variants.key):
            self[key] = merged[key]

    def keep(self, values: Mapping[str, Any]) -> None:
        """Sets those of the values that are fields here and fit, the one that chooses first."""
        for key in sorted(values, key=lambda key: key != self.variants.key):
            try:
                self[key] = values[key]
            except ConfigError:  # no field here, or of another type
                continue

    def get_type(self, key: str) -> Any:
        """The annotation of a field."""
        return str if key == self.variants.key and self.variants.has_choice else self._option(key, None).kind

    def copy(self, on_choice: Callable[[], None] | None = None) -> Section:
        """A section of its own with the same values."""
        other = Section(self.variants, self.where, on_choice)
        other._fields.update(self._fields)
        for key in other._fields.keys() - self._fields.keys():
            del other._fields[key]
        other.given.update(self.given)
        return other

    def copy_and_resolve_references(self, visit_map: Any = None) -> Section:
        return self.copy()

    __copy__ = copy_and_resolve_references

    def __deepcopy__(self, memo: Any) -> Section:
        return self.copy()

    def _fill(self, choice: str, kept: dict[str, Any]) -> None:
        fields = self.variants.options(choice)
        if hidden := [name for name in fields if hasattr(Section, name) or name in self.__dict__]:
            raise TypeError(f"{self.where} cannot have a field {hidden[0]!r}, which every section has as an attribute")
        self._fields.clear()
        if self.variants.has_choice:
            self._fields[self.variants.key] = choice
        self._fields.update({name: option.default for name, option in fields.items()})
        self.given.clear()
        self.keep(kept)

    def _option(self, key: str, value: Any) -> Option:
        fields = self.options()
        if key in fields:
            return fields[key]
        others = [name for name in self.variants.constructors if key in self.variants.options(name)]
        if others:
            taken = ", ".join(options(self.constructor, self.variants.filled)) or "nothing"
            raise ConfigError(
                f"{self.where}.{key} is {value!r}, but {self.choice!r} does not take it; it takes {taken}"
            )
        names = [self.variants.key] if self.variants.has_choice else []
        raise unknown(f"{self.where} field", key, [*names, *fields])

    def _fitted(self, key: str, value: Any) -> Any:
        kind = self._option(key, value).kind
        try:
            return fitted(kind, value)
        except TypeError:
            raise ConfigError(
                f"{self.where}.{key} is {value!r}, of type {type(value).__name__}; it must be of type {type_name(kind)}"
            ) from None
