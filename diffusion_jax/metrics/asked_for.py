"""Images of the command line can have been asked for by prompts or labels, and can be compared in pairs."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import readers
from diffusion_jax.metrics.image_sets import ImageSet
from diffusion_jax.metrics.metric import Need
from diffusion_jax.metrics.statistics import Statistics


def missing(
    options: argparse.Namespace, reference: Statistics | ImageSet | None, generated: ImageSet
) -> dict[Need, str]:
    """Says what is not given of what a metric could need image by image, and what to do about it."""
    if options.skip_bad:
        kinds = (Need.PROMPTS, Need.LABELS, Need.PAIRS)
        return {need: "which must be of every image: leave out --skip-bad" for need in kinds}
    found: dict[Need, str] = {}
    for need, flag, file in (
        (Need.PROMPTS, "--prompts", options.prompts),
        (Need.LABELS, "--labels", options.labels),
    ):
        if file is None:
            found[need] = f"one a line for each image of --generated: {flag} FILE is missing"
    if reference is None or isinstance(reference, Statistics):
        found[Need.PAIRS] = "image i with image i: --reference must hold images"
    elif len(reference) != len(generated):
        found[Need.PAIRS] = (
            f"image i with image i: --generated holds {len(generated)} images and --reference {len(reference)}"
        )
    return found


def read(options: argparse.Namespace, generated: ImageSet) -> dict[str, Any]:
    """Reads the prompts and labels of --generated, where they are given, as fields of a side.

    Raises ValueError, one line for the user, for a file that cannot be read or is not of these images.
    """
    asked: dict[str, Any] = {}
    if options.prompts is not None:
        asked["prompts"] = tuple(_lines(options.prompts, "--prompts", len(generated)))
    if options.labels is not None:
        lines = _lines(options.labels, "--labels", len(generated))
        if wrong := [line for line in lines if not line.strip().isdecimal()]:
            raise ValueError(
                f"--labels {options.labels}: {wrong[0]!r:.60} is no class; classes are whole numbers from 0"
            )
        asked["labels"] = np.array([int(line) for line in lines], np.int32)
    return asked


def _lines(file: str, flag: str, count: int) -> list[str]:
    with readers.decoding(f"{flag} {file}", "text file"):
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    if len(lines) != count:
        raise ValueError(f"{flag} {file}: holds {len(lines)} lines for {count} images of --generated")
    return lines
