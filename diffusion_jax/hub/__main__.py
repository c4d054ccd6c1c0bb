"""The hub's command: ``./launch/local.sh hub convert SRC DST`` and ``export RUN DST``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from diffusion_jax.hub.convert import convert
from diffusion_jax.hub.export import check_new, export

BAD_INPUT = 2
LAYOUTS = "layout of the folder: diffusers, guided-diffusion, original, ddpm, edm or edm2, where it fits the network"


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns the exit code: 0, or 2 with one line for bad input."""
    parsed = _parser().parse_args(arguments)
    try:
        if parsed.command == "convert":
            settings = dict(_setting(text) for text in parsed.set)
            check_new(Path(parsed.destination), parsed.overwrite)
            convert(parsed.source, parsed.destination, settings=settings, format=parsed.format, say=_say)
        else:
            _say(f"reading {parsed.source}")
            options = {"format": parsed.format, "overwrite": parsed.overwrite, "say": _say}
            export(parsed.source, parsed.destination, **options)
            _say(f"wrote {parsed.destination}")
    except ValueError as error:
        _say(" ".join(str(error).split()))
        return BAD_INPUT
    except OSError as error:
        _say(f"{error.filename}: {error.strerror}")
        return BAD_INPUT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="./launch/local.sh hub",
        description="Other people's checkpoints, in and out.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    told = commands.add_parser(
        "convert",
        help="weights as papers' authors released them to a folder that hub.load opens",
        description="Reads a .pkl of EDM or EDM2, or a .pt of DDPM's PyTorch port, improved-diffusion,"
        " guided-diffusion, DiT or SiT,"
        " or a .ckpt or .safetensors of Stable Diffusion 1, 2 or XL. Nothing in the file is run.",
    )
    told.add_argument("source", metavar="SRC", help="the file")
    told.add_argument("destination", metavar="DST", help="the folder, made if missing")
    told.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an argument of the network that does not follow from the file, for example num_heads=4 (repeatable)",
    )
    told.add_argument("--format", help=LAYOUTS + "; the names of the file if not given")
    exported = commands.add_parser(
        "export",
        help="a run of this project, or anything that hub.load opens, to another library's layout",
        description="The averaged parameters of a run's newest checkpoint, or a checkpoint folder, in another layout."
        " A run of a U-Net in pixels becomes a whole pipeline of diffusers.",
    )
    exported.add_argument("source", metavar="RUN", help="the run's folder, or whatever hub.load opens")
    exported.add_argument("destination", metavar="DST", help="the folder, made if missing")
    exported.add_argument("--format", help=LAYOUTS + "; the first that fits if not given")
    for command in (told, exported):
        command.add_argument("--overwrite", action="store_true", help="write into a folder that holds files")
    return parser


def _setting(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--set {text}: it must be NAME=VALUE, for example num_heads=4")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def _say(line: str) -> None:
    print(f"diffusion_jax.hub: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
