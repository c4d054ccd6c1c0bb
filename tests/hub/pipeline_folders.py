"""Pipelines as diffusers saves them, made of a golden's configs and the weights of the fill rule."""

import shutil
from pathlib import Path

from safetensors.numpy import save_file

from tests import golden


def write(name: str, directory: Path) -> Path:
    shutil.copytree(golden.GOLDENS / name, directory, ignore=shutil.ignore_patterns("golden.*", "tensors.json"))
    for tensors in (golden.GOLDENS / name).glob("*/tensors.json"):
        part = tensors.parent.name
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        save_file(golden.fill_tensors(f"{name}/{part}"), directory / part / f"{stem}.safetensors")
    return directory
