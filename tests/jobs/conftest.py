"""Latents that several tests of the jobs read."""

import pytest
from PIL import Image

from diffusion_jax import data
from diffusion_jax.jobs import encode
from tests.hub import folders


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(latents of a few digits in two classes, the autoencoder's folder)."""
    root = tmp_path_factory.mktemp("latents")
    vae = folders.write("vae-kl", root / "vae")
    digits = data.load_source("digits", "train", image_size=8, channels=1)
    for row in range(40):
        folder = root / "images" / ("train" if row < 32 else "test") / f"class{row % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(digits[row]["image"][..., 0]).save(folder / f"{row:02}.png")
    arguments = ["--vae", str(vae), "--out", str(root / "out"), "--path", str(root / "images"), "--image_size", "8"]
    assert encode.main(arguments) == 0
    return root / "out", vae
