"""The command: flags and a config file to a job. Nothing else in the project reads flags.

./launch/local.sh --config configs/digits.py
"""

from __future__ import annotations

import argparse
import difflib
import os
import shlex
import sys
import traceback
import typing
from pathlib import Path

from diffusion_jax import platform

platform.prepare()  # before anything imports JAX

from absl import logging  # noqa: E402

from diffusion_jax.jobs.job import Job, imported  # noqa: E402
from diffusion_jax.jobs.table import JOBS, WHOLE_RUN  # noqa: E402

USAGE = """\
Trains, samples, evaluates and reports an image diffusion model.

  ./launch/local.sh --config FILE [--workdir DIR] [--mode MODE] [--config.field=value ...]

Without --mode it trains (resuming what is in DIR), draws samples, scores them and writes DIR/report.html.
Any field of the config can be set from here, for example --config.training.num_steps=500; --help --config FILE lists
those of a config.

  ./launch/local.sh --mode sample --from DIR --prompt "..." [--steps N] [--seed S] [--out DIR] ...

draws from a published checkpoint (Stable Diffusion and others); --mode sample --from DIR --help lists its options.
"""
# Bad input; the same code as argparse and the shell use.
BAD_INPUT = 2


class UsageError(ValueError):
    """A command line that cannot be; the message is one line."""


def main(argv: list[str]) -> int:
    """Runs the command line `argv` and returns the exit code.

    0, 2 for bad input, 75 when it has saved and should be started again, 128 + n when ended by signal n.
    """
    if own := _own_command(argv):
        return _run_command(*own)
    logging.set_verbosity(logging.ERROR)
    try:
        asked = _asked(argv)
        if asked.help:
            _print_help(asked)
            return 0
        from diffusion_jax.training import distributed

        if asked.config is None:
            raise UsageError("--config FILE is missing, for example --config configs/digits.py")
        from diffusion_jax import config as experiment

        config = experiment.load(asked.config)
        experiment.override(config, asked.fields)
        distributed.initialize(asked.coordinator, asked.num_processes, asked.process_id)
    except ValueError as error:
        return _refuse(error)
    try:
        from diffusion_jax.jobs import run

        workdir = Path(asked.workdir or Path("runs") / experiment.run_name(config))
        modes = WHOLE_RUN if asked.mode is None else (asked.mode,)
        return run.run(config, workdir, modes, command=_repeatable(argv))
    except ValueError as error:
        code = _refuse(error)
    except Exception:
        traceback.print_exc()
        code = 1
    distributed.leave(code)
    return code


def _own_command(argv: list[str]) -> tuple[Job, list[str]] | None:
    """The job whose options are its own, and those that are given; None for a job of a config."""
    rest, mode = [], None
    arguments = iter(argv[1:])
    for argument in arguments:
        if argument == "--mode":
            mode = next(arguments, None)
        elif argument.startswith("--mode="):
            mode = argument.partition("=")[2]
        else:
            rest.append(argument)
    is_from = any(argument.split("=")[0] == "--from" for argument in rest)
    job = JOBS.get(mode or ("sample" if is_from else ""))
    if job is None or job.command is None or not (is_from or job.function is None):
        return None
    return job, rest


def _run_command(job: Job, arguments: list[str]) -> int:
    assert job.command is not None
    try:
        return imported(job.command)(arguments)
    except ValueError as error:
        return _refuse(error)
    except FloatingPointError as error:  # not the user's fault, and no image
        print(f"diffusion_jax: {error}", file=sys.stderr)
        return 1


def _refuse(error: ValueError) -> int:
    # Every refusal of bad input in this project is a ValueError with one line for the user. Anything else that
    # surfaces here is a defect, and DIFFUSION_JAX_TRACEBACK=1 shows where it comes from.
    if os.environ.get("DIFFUSION_JAX_TRACEBACK"):
        traceback.print_exception(error)
    print(f"diffusion_jax: {' '.join(str(error).split())}", file=sys.stderr)
    return BAD_INPUT


class _Options(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message}; see --help")


def _options() -> _Options:
    parser = _Options(prog="./launch/local.sh", allow_abbrev=False, add_help=False)
    parser.add_argument("--help", "-h", action="store_true", help="this; with --config FILE the fields of that config")
    parser.add_argument("--config", metavar="FILE", help="the experiment: a file with get_config(), or FILE:ARGUMENT")
    parser.add_argument("--workdir", metavar="DIR", help="where everything is written; runs/<config.name> if not given")
    parser.add_argument("--mode", help="one job alone; without it train, sample, evaluate and report")
    parser.add_argument(
        "--coordinator", help="several processes: HOST:PORT of process 0, or auto on TPU pods, SLURM and Open MPI"
    )
    parser.add_argument("--num_processes", type=int, help="several processes: how many there are")
    parser.add_argument("--process_id", type=int, help="several processes: which this is, from 0")
    return parser


def _asked(argv: list[str]) -> argparse.Namespace:
    """The options, and as `fields` the arguments that set fields of the config. Raises UsageError, in one line."""
    parser = _options()
    fields, others = _split(argv[1:])
    asked, rest = parser.parse_known_args(others)
    asked.fields = fields
    for argument in rest:
        if not argument.startswith("-"):
            raise UsageError(f"unexpected argument {argument!r}; options begin with --, see --help")
        raise UsageError(_unknown(argument.partition("=")[0], parser))
    if asked.mode is not None and asked.mode not in JOBS:
        raise UsageError(f"--mode {asked.mode!r} does not exist; it can be {', '.join(JOBS)}")
    for name, least in (("num_processes", 1), ("process_id", 0)):
        value = getattr(asked, name)
        if value is not None and value < least:
            raise UsageError(f"--{name} is {value}; it must be {least} or more")
    return asked


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(the arguments that set fields of the config, as --config.field=value, and the others)."""
    fields: list[str] = []
    others: list[str] = []
    waits = False
    for argument in arguments:
        if waits and not argument.startswith("--"):
            fields[-1] += f"={argument}"
            waits = False
        elif argument.startswith("--config."):
            fields.append(argument)
            waits = "=" not in argument
        else:
            others.append(argument)
            waits = False
    return fields, others


def _unknown(option: str, parser: argparse.ArgumentParser) -> str:
    """One line that says which option was near, or which field of the config."""
    from diffusion_jax import config

    fields = [f"--config.{path}" for path, _ in config.flatten(config.default())]
    known = [string for action in parser._actions for string in action.option_strings if string.startswith("--")]
    by_last_part = [field for field in fields if field.rpartition(".")[2] == option.lstrip("-")]
    near = [
        *difflib.get_close_matches(option, known, n=1),
        *sorted(by_last_part, key=lambda field: field.count(".")),
        *difflib.get_close_matches(option, fields, n=1),
    ]
    return f"{option} is not an option" + (f"; did you mean {near[0]}?" if near else "; see --help")


def _repeatable(argv: list[str]) -> str:
    """The command that makes the whole run again: the one given, for all modes and any work directory."""
    left_out = ("--mode", "--workdir", "--coordinator", "--num_processes", "--process_id")
    kept, skip = [], False
    for argument in argv[1:]:
        if not skip and not argument.startswith(left_out):
            kept.append(argument)
        skip = argument in left_out
    return f"./launch/local.sh {shlex.join(kept)}"


def _print_help(asked: argparse.Namespace) -> None:
    from diffusion_jax import config as experiment
    from diffusion_jax.config import describe

    config = experiment.default() if asked.config is None else experiment.load(asked.config)
    experiment.override(config, asked.fields)
    print(USAGE)
    print("modes:")
    for name, job in JOBS.items():
        print(f"  {name:10} {job.help}")
    print("\noptions:")
    for action in _options()._actions:
        print(f"  {action.option_strings[0]:16} {action.help}")
    whose = "of a new config" if asked.config is None else f"of {asked.config}"
    print(f"\nfields {whose}; others come with another name of a section or of the method:\n")
    print(describe.help_text(config))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
