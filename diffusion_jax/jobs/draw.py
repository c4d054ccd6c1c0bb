"""The command that draws from a published checkpoint; its options are the fields of `request.Request`.

./launch/local.sh --mode sample --from DIR --prompt "..."
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
from typing import Any

from diffusion_jax.jobs import pipeline
from diffusion_jax.jobs.request import Request

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
        raise ValueError(f"{message}; see --mode sample --from DIR --help")


def command(arguments: list[str]) -> int:
    """Draws, and returns the exit code. Raises ValueError, in one line, for what cannot be."""
    parser = _Parser(prog="./launch/local.sh --mode sample", allow_abbrev=False)
    kinds = typing.get_type_hints(Request)
    for field in dataclasses.fields(Request):
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
        asked = vars(parser.parse_args(arguments))
    except SystemExit:  # after --help
        return 0
    kept: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}
    pipeline.draw(Request(**{name: value for name, value in kept.items() if value is not None}))
    return 0
