"""Model folders as other libraries write them, made of a golden's config and the weights of the fill rule."""

import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from diffusion_jax import hub
from tests import golden

STEM = "diffusion_pytorch_model"


def write(name: str, directory: Path, tensors: dict[str, np.ndarray] | None = None, **settings) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(golden.config(name) | settings))
    save_file(golden.fill_tensors(name) if tensors is None else tensors, directory / f"{STEM}.safetensors")
    return directory


def assert_close(actual, expected, tolerance=1e-5):
    """Equal to within the tolerance, relative to the largest of the expected values."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def assert_round_trip(name: str, tmp_path: Path, ignored: tuple[str, ...] = ()) -> None:
    """load-save-load gives the same network and bits, and the file that diffusers would write."""
    model, params = hub.load(write(name, tmp_path / "there"))
    hub.save(model, params, tmp_path / "back")
    again, loaded = hub.load(tmp_path / "back")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    original, written = golden.fill_tensors(name), load_file(tmp_path / "back" / f"{STEM}.safetensors")
    assert written.keys() - set(ignored) == original.keys()
    for tensor, value in original.items():
        np.testing.assert_array_equal(written[tensor], value, err_msg=tensor)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    for field, value in golden.config(name).items():
        if field != "_diffusers_version":
            assert config[field] == value, field
