"""A config from the command line: a file with get_config(), and fields that are set beside it."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from diffusion_jax.config.experiment import Experiment
from diffusion_jax.config.section import ConfigError

_ASSIGNMENT = re.compile(r"--config\.([\w.]+)(?:=(.*))?", re.DOTALL)


def load(argument: str) -> Experiment:
    """What get_config() of a file gives; behind a colon in `argument` is what it is given.

    Raises:
      ConfigError: in one line: there is no such file, or it cannot be run, or gives something else.
    """
    name, colon, given = argument.partition(":")
    path = Path(name)
    if not path.is_file():
        near = sorted(str(found) for found in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise ConfigError(
            f"--config {argument}: there is no such file" + (f"; there are {', '.join(near)}" if near else "")
        )
    try:
        config = _run(path, [given] if colon else [])
    except ConfigError as error:  # written for the user
        place = _place(error, path)
        raise ConfigError(f"--config: {place}{error}" if place else str(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
    except (Exception, SystemExit) as error:  # a config file is a program, and may raise anything
        message = " ".join(str(error).split())
        raise ConfigError(f"--config: {_place(error, path)}{type(error).__name__}: {message}") from error
    if not isinstance(config, Experiment):
        raise ConfigError(
            f"--config {argument}: get_config() gives {type(config).__name__}; it has to change and to return "
            "diffusion_jax.config.default()"
        )
    return config


def override(config: Experiment, assignments: Sequence[str]) -> None:
    """Sets the fields that --config.<path>=<value> name, in order, but first those that choose what others there are.

    Raises ConfigError for a field that does not exist and for a value that it cannot have.
    """
    pairs = []
    for assignment in assignments:
        match = _ASSIGNMENT.fullmatch(assignment)
        if match is None:
            raise ConfigError(f"{assignment!r} sets no field; write --config.field=value")
        pairs.append((match[1], match[2]))
    choices = ("method.name", *(f"{name}.{section.variants.key}" for name, section in config.sections()))
    order = {path: place for place, path in enumerate(choices)}
    for path, text in sorted(pairs, key=lambda pair: order.get(pair[0], len(order))):
        if text is None and config.type_of(path) is not bool:
            raise ConfigError(f"--config.{path} has no value; write --config.{path}=VALUE")
        config.set_text(path, "true" if text is None else text)
    object.__setattr__(config, "commanded", frozenset(path for path, _ in pairs))


def _run(path: Path, arguments: list[str]) -> object:
    spec = importlib.util.spec_from_file_location(f"config_of_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--config {path}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    if str(Path.cwd()) not in sys.path:  # configs import each other from the folder of the project
        sys.path.insert(0, str(Path.cwd()))
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"--config {path}: there is no get_config() in it")
    try:
        inspect.signature(module.get_config).bind(*arguments)
    except TypeError:
        takes = "takes no argument behind a colon" if arguments else "needs an argument behind a colon"
        raise ConfigError(f"--config {path}: its get_config() {takes}") from None
    return module.get_config(*arguments)


def _place(error: BaseException, path: Path) -> str:
    """Where in the config file, or in another that it imports, an error came up; "" if it did in neither."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    here = [frame for frame in frames if frame.name == "get_config" or Path(frame.filename) == path]
    return f"{here[-1].filename}, line {here[-1].lineno}: " if here else ""
