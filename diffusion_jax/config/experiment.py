"""A whole config: what every run has, and the sections that follow from the method that it names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import config_dict

from diffusion_jax.config.section import ConfigError, Section, unknown
from diffusion_jax.options import Variants


class Experiment(config_dict.ConfigDict):
    """The fields of a run as its own, and its sections.

    Another `method.name` brings the sections of another method. Those that both have stay as they are, and of others
    with the same name what was set and fits is kept.

    Attributes:
      commanded: paths of the fields that the command line set.
    """

    commanded: frozenset[str]

    def __init__(self, run: Variants, method: Variants, sections: Mapping[str, Mapping[str, Variants]]):
        """`run` are the fields of its own, `method` the section of that name, and `sections` those of each method."""
        super().__init__(sort_keys=False)
        for name, value in (
            ("commanded", frozenset()),
            ("_run", Section(run, "config")),
            ("_method", method),
            ("_sections", sections),
        ):
            object.__setattr__(self, name, value)
        self._fields["method"] = Section(method, "config.method", self._arrange)
        self._arrange()

    def sections(self) -> Iterator[tuple[str, Section]]:
        """(name, section) of each."""
        for name, value in self._fields.items():
            if isinstance(value, Section):
                yield name, value

    @property
    def run(self) -> Section:
        """The fields that are in no section."""
        return self._run

    def __setitem__(self, key: str, value: Any) -> None:
        if key in self._run:
            self._run[key] = value
            self._fields[key] = self._run[key]
            return
        if key not in self._fields:
            raise self._missing(key)
        section = self._fields[key]
        if not isinstance(value, (Mapping, config_dict.ConfigDict)):
            raise ConfigError(f"config.{key} is {value!r}; it is a section with {', '.join(section.keys())}")
        section.update(value)

    def __getattr__(self, attribute: str) -> Any:
        if attribute not in self._fields:
            raise AttributeError(str(self._missing(attribute)))
        return self._fields[attribute]

    def __delitem__(self, key: str) -> None:
        raise ConfigError(f"config.{key} cannot be deleted")

    def set_text(self, path: str, text: str) -> None:
        """Sets the field at a dotted path to what a text stands for. Raises ConfigError."""
        first, _, field = path.partition(".")
        if not field and first in self._run:
            self._run.set_text(first, text)
            self._fields[first] = self._run[first]
        elif first not in self._fields or first in self._run:
            raise self._missing(first)
        elif not field:
            raise ConfigError(f"config.{first} is {text!r}; it is a section with {', '.join(self[first].keys())}")
        else:
            self[first].set_text(field, text)

    def type_of(self, path: str) -> Any:
        """The annotation of the field at a dotted path. Raises ConfigError where there is none."""
        first, _, field = path.partition(".")
        if not field and first in self._run:
            return self._run.get_type(first)
        if first not in self._fields or first in self._run or not field:
            raise self._missing(first)
        return self[first].get_type(field)

    def update(self, *others: Any, **fields: Any) -> None:
        """Sets several fields and sections, the method first."""
        merged = {key: value for other in (*others, fields) for key, value in other.items()}
        for key in sorted(merged, key=lambda key: key != "method"):
            self[key] = merged[key]

    def copy_and_resolve_references(self, visit_map: Any = None) -> Experiment:
        other = Experiment(self._run.variants, self._method, self._sections)
        object.__setattr__(other, "commanded", self.commanded)
        object.__setattr__(other, "_run", self._run.copy())
        other._fields.clear()
        for key, value in self._fields.items():
            is_method = key == "method"
            other._fields[key] = (
                value.copy(other._arrange if is_method else None) if isinstance(value, Section) else value
            )
        return other

    def __copy__(self) -> Experiment:
        return self.copy_and_resolve_references()

    def __deepcopy__(self, memo: Any) -> Experiment:
        return self.copy_and_resolve_references()

    def _arrange(self) -> None:
        method: Section = self._fields["method"]
        before = dict(self._fields)
        self._fields.clear()
        self._fields.update({key: self._run[key] for key in self._run})
        for key, variants in self._sections[method.choice].items():
            old = before.get(key)
            if key == "method":
                self._fields[key] = method
            elif old is not None and old.variants is variants:
                self._fields[key] = old
            else:
                self._fields[key] = Section(variants, f"config.{key}")
                if old is not None:
                    self._fields[key].keep({name: old[name] for name in old.given})

    def _missing(self, key: str) -> ConfigError:
        having = [name for name, sections in self._sections.items() if key in sections]
        if having:
            return ConfigError(
                f"config.{key} is no section of config.method.name {self._fields['method'].choice!r}; it is one of "
                f"{', '.join(having)}, so set the name first"
            )
        return unknown("config field", key, self._fields)
