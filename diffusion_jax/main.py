"""The command: flags and a config file to a job. Nothing else in the project reads flags.

./launch/local.sh --config configs/digits.py
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import shlex
import sys
import traceback
import typing
from pathlib import Path

from diffusion_jax import platform

platform.prepare()  # before anything imports JAX

from absl import flags, logging  # noqa: E402
from ml_collections import config_flags  # noqa: E402

USAGE = """\
Trains, samples, evaluates and reports an image diffusion model.

  ./launch/local.sh --config FILE [--workdir DIR] [--mode MODE] [--config.field=value ...]

Without --mode it trains (resuming what is in DIR), draws samples, scores them and writes DIR/report.html.
Any field of the config can be set from here, for example --config.training.num_steps=500.

  ./launch/local.sh --mode sample --from DIR --prompt "..." [--steps N] [--seed S] [--out DIR] ...

draws from a published checkpoint (Stable Diffusion and others); --mode sample --from DIR --help lists its options.
"""
MODES = {
    "train": "train, resuming the newest checkpoint in the work directory",
    "sample": "write samples.png and sampling.gif from the newest checkpoint",
    "evaluate": "score generated images against held-out ones: evaluation.json",
    "report": "write report.html from what the other jobs left",
    "replay": "run the step again at which training stopped, and say what is not finite where",
}
# What runs without --mode.
WHOLE_RUN = ("train", "sample", "evaluate", "report")

_CONFIG = config_flags.DEFINE_config_file("config", None, "the experiment: a file with get_config()", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where everything is written; runs/<config.name> if not given")
_MODE = flags.DEFINE_string("mode", None, "one job alone: " + "; ".join(f"{k}: {v}" for k, v in MODES.items()))
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "several processes: HOST:PORT of process 0, or auto on TPU pods, SLURM and Open MPI"
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "several processes: how many there are", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "several processes: which this is, from 0", lower_bound=0)

# Bad input; the same code as argparse and the shell use.
BAD_INPUT = 2


class UsageError(ValueError):
    """A command line that cannot be; the message is one line."""


def main(argv: list[str]) -> int:
    """Runs the command line `argv` and returns the exit code.

    0, 2 for bad input, 75 when it has saved and should be started again, 128 + n when ended by signal n.
    """
    if any(argument.split("=")[0] == "--from" for argument in argv):
        return _sample_from(argv)
    if "--help" in argv or "-h" in argv:
        _print_help()
        return 0
    logging.set_verbosity(logging.ERROR)
    try:
        _parse(argv)
        from diffusion_jax.training import distributed

        distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    except ValueError as error:
        return _refuse(error)
    try:
        from diffusion_jax import config
        from diffusion_jax.jobs import run

        workdir = Path(_WORKDIR.value or Path("runs") / config.run_name(_CONFIG.value))
        modes = WHOLE_RUN if _MODE.value is None else (_MODE.value,)
        return run.run(_CONFIG.value, workdir, modes, command=_repeatable(argv))
    except ValueError as error:
        code = _refuse(error)
    except Exception:
        traceback.print_exc()
        code = 1
    distributed.leave(code)
    return code


# Options that other tools have under these names.
_FOREIGN = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "cfg_scale": "--guidance",
    "num_images_per_prompt": "--num",
    "n_samples": "--num",
    "height": "--size HEIGHTxWIDTH",
    "width": "--size HEIGHTxWIDTH",
    "scheduler": "--sampler",
    "model": "--from",
    "ckpt": "--from",
    "output": "--out",
    "outdir": "--out",
    "init_image": "--image",
    "mask_image": "--mask",
    "controlnet": "--control",
    "textual_inversion": "--embedding",
    "precision": "--dtype",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        known = [option.lstrip("-") for action in self._actions for option in action.option_strings]
        if message.startswith("unrecognized arguments"):
            asked = message.partition(": ")[2].split()[0].lstrip("-").partition("=")[0]
            near = difflib.get_close_matches(asked, known, n=1)
            ours = _FOREIGN.get(asked.replace("-", "_")) or (f"--{near[0]}" if near else None)
            message = f"--{asked} is not an option" + (f"; here it is {ours}" if ours else "")
        raise UsageError(f"{message}; see --mode sample --from DIR --help")


def _sample_from(argv: list[str]) -> int:
    """Draws from a published checkpoint; the options are the fields of `jobs.pipeline.Request`."""
    from diffusion_jax.jobs import pipeline

    parser = _Parser(prog="./launch/local.sh --mode sample", allow_abbrev=False)
    parser.add_argument("--mode", choices=("sample",), help="sample")
    kinds = typing.get_type_hints(pipeline.Request)
    for field in dataclasses.fields(pipeline.Request):
        name = "--from" if field.name == "source" else f"--{field.name}"
        kind, text = kinds[field.name], field.metadata["help"]
        if kind is bool:
            parser.add_argument(name, dest=field.name, action="store_true", help=text)
            continue
        several = typing.get_origin(kind) is tuple
        single = next(part for part in (typing.get_args(kind) or (kind,)) if part in (str, int, float))
        action = "append" if several else "store"
        default = None if several else field.default
        parser.add_argument(name, dest=field.name, type=single, action=action, default=default, help=text)
    try:
        asked = vars(parser.parse_args(argv[1:]))
        del asked["mode"]
        kept: dict[str, typing.Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()
        }
        pipeline.draw(pipeline.Request(**{name: value for name, value in kept.items() if value is not None}))
    except SystemExit:  # after --help
        return 0
    except ValueError as error:
        return _refuse(error)
    except FloatingPointError as error:  # not the user's fault, and no image
        print(f"diffusion_jax: {error}", file=sys.stderr)
        return 1
    return 0


def _refuse(error: ValueError) -> int:
    # Every refusal of bad input in this project is a ValueError with one line for the user. Anything else that
    # surfaces here is a defect, and DIFFUSION_JAX_TRACEBACK=1 shows where it comes from.
    if os.environ.get("DIFFUSION_JAX_TRACEBACK"):
        traceback.print_exception(error)
    print(f"diffusion_jax: {' '.join(str(error).split())}", file=sys.stderr)
    return BAD_INPUT


def _parse(argv: list[str]) -> None:
    """Reads flags and config; raises UsageError with one line for whatever is wrong with them."""
    path = next(
        (
            b if a == "--config" else a.split("=", 1)[1]
            for a, b in zip(argv, [*argv[1:], ""], strict=True)
            if a == "--config" or a.startswith("--config=")
        ),
        None,
    )
    if not path:
        raise UsageError("--config FILE is missing, for example --config configs/digits.py")
    if not Path(path.partition(":")[0]).is_file():  # behind a colon is the argument of get_config
        near = sorted(str(found) for found in Path(path).parent.glob("*.py")) if Path(path).parent.is_dir() else []
        raise UsageError(f"--config {path}: there is no such file" + (f"; there are {', '.join(near)}" if near else ""))
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:  # a config file is a program, and may raise anything
        raise UsageError(_explain(error, argv)) from error
    if len(rest) > 1:
        raise UsageError(f"unexpected argument {rest[1]!r}; options begin with --, see --help")
    if _MODE.value is not None and _MODE.value not in MODES:
        raise UsageError(f"--mode {_MODE.value!r} does not exist; it can be {', '.join(MODES)}")


def _repeatable(argv: list[str]) -> str:
    """The command that makes the whole run again: the one given, for all modes and any work directory."""
    left_out = ("--mode", "--workdir", "--coordinator", "--num_processes", "--process_id")
    kept, skip = [], False
    for argument in argv[1:]:
        if not skip and not argument.startswith(left_out):
            kept.append(argument)
        skip = argument in left_out
    return f"./launch/local.sh {shlex.join(kept)}"


def _explain(error: Exception, argv: list[str]) -> str:
    """One line that says which setting was refused and why."""
    from diffusion_jax import config

    if "Traceback (most recent call last)" in str(error):
        return _explain_file(str(error))
    message = " ".join(str(error).strip("'\"").split())
    # config_flags reports a bad override without naming it: try them one by one against the defaults.
    for argument in argv[1:]:
        if argument.startswith("--config."):
            path, _, value = argument.removeprefix("--config.").partition("=")
            refused = config.refuse_override(path, value)
            if refused:
                return refused
    # ml_collections lists the whole config after what is wrong, and then what is near.
    message, listed, rest = message.partition(" Other fields present: ")
    if listed and "Did you mean" in rest:
        message += f" Did you mean{rest.rpartition('Did you mean')[2]}"
    place = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name == "get_config"]
    if not place:
        return message
    kind = "" if isinstance(error, AttributeError) else f"{type(error).__name__}: "
    return f"--config: {place[-1].filename}, line {place[-1].lineno}: {kind}{message}"


def _explain_file(told: str) -> str:
    """One line of the traceback that config_flags gives for an error inside of the config file."""
    what = [line for line in told.splitlines() if line.strip()][-1]
    if what.startswith("ValueError: "):  # written for the user
        return what.removeprefix("ValueError: ")
    file, line = re.findall(r'File "(.+?)", line ([0-9]+)', told)[-1]
    return f"--config: {file}, line {line}: {what}"


def _print_help() -> None:
    print(USAGE)
    print("modes:")
    for mode, text in MODES.items():
        print(f"  {mode:10} {text}")
    print("\nconfig fields and their defaults (unset: the default of what `name` picks):")
    from diffusion_jax import config
    from diffusion_jax.config import describe

    texts = describe.descriptions()
    for path, value in config.flatten(config.default()):
        field = f"  --config.{path}={'' if value is None else value}"
        print(f"{field:55} {texts[path]}" if path in texts else field)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
