"""The command that turns images into latents, with a small autoencoder in diffusers' layout."""

import json

import jax
import numpy as np
import pytest

from diffusion_jax import data, hub
from diffusion_jax.jobs import encode
from diffusion_jax.methods.latent_space import LatentSpace, decode
from tests.hub import folders


@pytest.fixture(scope="module")
def vae(tmp_path_factory):
    return str(folders.write("vae-kl", tmp_path_factory.mktemp("vae")))


@pytest.fixture(scope="module")
def encoded(vae, tmp_path_factory):
    """The first digits, each also mirrored, in files of at most 15 rows."""
    digits = data.load_source("digits", "train", image_size=8, channels=3)
    source = data.ArraySource(digits.images[:10], digits.labels[:10], num_classes=10)
    folder = tmp_path_factory.mktemp("latents")
    model, params = hub.load(vae)
    measured = encode.encode(source, folder / "train", model, params, batch_size=8, flip=True, shard_rows=15)
    encode.encode(source, folder / "test", model, params, batch_size=8)
    (folder / "latents.json").write_text(json.dumps({"num_classes": 10}))
    return source, folder, model, params, measured


def test_latents_are_the_autoencoders_in_the_order_of_the_images(encoded):
    source, folder, model, params, _ = encoded
    images = data.to_float(source.images)
    mean, log_variance = model.apply({"params": params}, images, method="encode")
    stored = data.load_source("latents", "train", image_size=4, channels=4, path=str(folder))
    assert (len(stored), len(list(folder.glob("train/latents-*.npy")))) == (20, 2)
    rows, labels = data.load_arrays(stored)
    folders.assert_close(rows[::2, ..., :4], mean)
    folders.assert_close(rows[::2, ..., 4:], np.exp(0.5 * log_variance))
    mirrored, _ = model.apply({"params": params}, images[:, :, ::-1], method="encode")
    folders.assert_close(rows[1::2, ..., :4], mirrored)
    np.testing.assert_array_equal(labels, np.repeat(source.labels, 2))
    assert len(data.load_source("latents", "test", image_size=4, channels=4, path=str(folder))) == 10


def test_the_moments_are_those_of_draws(encoded):
    _, folder, _, _, (mean, std, rows) = encoded
    stored, _ = data.load_arrays(data.load_source("latents", "train", image_size=4, channels=4, path=str(folder)))
    draw = np.random.default_rng(0).normal(stored[..., :4], stored[..., 4:], (500, 20, 4, 4, 4))
    np.testing.assert_allclose(mean, draw.mean((0, 1, 2, 3)), atol=0.02 * std.max())
    np.testing.assert_allclose(std, draw.std((0, 1, 2, 3)), rtol=0.02)
    assert rows == 20


def test_what_is_decoded_is_what_the_autoencoder_decodes(encoded):
    _, _, model, params, _ = encoded
    space = LatentSpace((0.1,) * 4, (2.0,) * 4, 0.5)
    latents = jax.random.normal(jax.random.key(0), (8, 4, 4, 4))
    image = model.apply({"params": params}, latents, method="decode")
    folders.assert_close(decode(model, params, space.from_latents(latents), space), np.clip(image, -1, 1), 1e-4)


def test_images_in_the_unit_range_are_edm2s(encoded, tmp_path):
    """training/encoders.py: x / 255 is encoded, and what is decoded is clamped to [0, 1]."""
    source, _, model, params, _ = encoded
    encode.encode(source, tmp_path / "train", model, params, batch_size=8, unit_range=True)
    (tmp_path / "latents.json").write_text(json.dumps({"num_classes": 10}))
    stored, _ = data.load_arrays(data.load_source("latents", "train", image_size=4, channels=4, path=str(tmp_path)))
    mean, _ = model.apply({"params": params}, source.images.astype(np.float32) / 255, method="encode")
    folders.assert_close(stored[..., :4], mean)
    space = LatentSpace((0.0,) * 4, (1.0,) * 4, unit_range=True)
    pixels = np.clip(model.apply({"params": params}, 3 * mean[:8], method="decode"), 0, 1)
    folders.assert_close(decode(model, params, 3 * mean[:8], space), 2 * pixels - 1, 1e-4)


def test_the_command_writes_both_splits_and_what_they_are(vae, tmp_path, monkeypatch):
    def two(split, **options):
        source = data.sources.load_source("digits", split, image_size=options["image_size"], channels=3)
        return data.ArraySource(source.images[:2], source.labels[:2], num_classes=10, class_names=source.class_names)

    monkeypatch.setattr(encode.data, "load_source", two)
    out = tmp_path / "latents"
    arguments = ["--vae", vae, "--out", str(out), "--data", "digits", "--image_size", "8", "--batch_size", "8"]
    assert encode.main(arguments) == 0
    record = json.loads((out / "latents.json").read_text())
    assert (record["num_classes"], record["num_training_rows"], len(record["std"])) == (10, 2, 4)
    assert record["unit_range"] is False
    assert record["data"] == {"name": "digits", "image_size": 8}


def test_bad_input_is_one_line_and_exit_2(vae, tmp_path, capsys):
    (tmp_path / "latents.json").write_text("{}")
    assert encode.main(["--vae", vae, "--out", str(tmp_path), "--data", "digits", "--image_size", "8"]) == 2
    assert "there are latents already" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    no_vae = ["--vae", str(tmp_path / "no"), "--data", "digits"]
    assert encode.main([*no_vae, "--out", str(tmp_path / "file" / "deeper")]) == 2
    assert "file is a file; name a folder" in capsys.readouterr().err
    assert encode.main(["--vae", str(tmp_path / "no"), "--out", str(tmp_path / "x"), "--data", "digits"]) == 2
    line = capsys.readouterr().err
    assert "no such folder" in line and line.count("\n") == 1
