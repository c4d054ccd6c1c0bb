"""EDM's networks: D(x; sigma) of the released code, and the way back to the file."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax import hub
from diffusion_jax.diffusion.preconditioning import PRECONDITIONINGS
from tests import golden

NAMES = (
    "edm-ddpmpp-edm",
    "edm-ddpmpp-vp",
    "edm-ddpmpp-ve",
    "edm-ddpmpp-iddpm",
    "edm-ncsnpp-edm",
    "edm-skip-edm",
    "edm-adm-edm",
    "edm-adm-augment-edm",
)


def state_dict(name: str) -> dict[str, np.ndarray]:
    recorded = golden.load(name)
    frequencies = {"model.map_noise.freqs": recorded["fourier_freqs"]} if "fourier_freqs" in recorded else {}
    return golden.fill_tensors(name) | frequencies


def write(name: str, directory: Path, tensors: dict[str, np.ndarray] | None = None, **settings) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(golden.config(name) | settings))
    save_file(state_dict(name) if tensors is None else tensors, directory / "model.safetensors")
    return directory


@functools.partial(jax.jit, static_argnames="model")
def apply(model, params, sample, timestep, class_labels, augment_labels):
    return model.apply(
        {"params": params},
        sample=sample,
        timestep=timestep,
        class_labels=class_labels,
        augment_labels=augment_labels,
    )


@pytest.mark.parametrize("name", NAMES)
def test_denoised_is_the_references(name, tmp_path):
    model, params = hub.load(write(name, tmp_path))
    recorded = golden.load(name)
    c = PRECONDITIONINGS[name.split("-")[-1]](recorded["sigma"].astype(np.float64))
    c_skip, c_out, c_in = (np.float32(factor)[:, None, None, None] for factor in c[:3])
    # as the code has it, classes are one-hot there
    labels = recorded["class_labels"].argmax(axis=1) if "class_labels" in recorded else None
    output = apply(model, params, c_in * recorded["x"], np.float32(c.c_noise), labels, recorded.get("augment_labels"))
    denoised, expected = c_skip * recorded["x"] + c_out * output[..., :3], recorded["denoised"]
    for image, reference in zip(denoised, expected, strict=True):
        assert np.linalg.norm(image - reference) / np.linalg.norm(reference) < 1e-4
    assert np.linalg.norm(denoised - expected) / np.linalg.norm(expected) < 5e-6


@pytest.mark.parametrize("name", ("edm-ddpmpp-iddpm", "edm-ncsnpp-edm", "edm-adm-edm"))
def test_round_trip_is_bit_identical(name, tmp_path):
    model, params = hub.load(write(name, tmp_path / "there"))
    hub.save(model, params, tmp_path / "back")
    again, loaded = hub.load(tmp_path / "back")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    original, written = state_dict(name), load_file(tmp_path / "back" / "model.safetensors")
    assert written.keys() == original.keys()
    for tensor, value in original.items():
        np.testing.assert_array_equal(written[tensor], value, err_msg=tensor)


def test_resampling_filters_in_the_file_are_settings(tmp_path):
    # buffers of the pickled networks
    buffers = {"model.enc.8x8_down.conv0.resample_filter": np.full((1, 1, 2, 2), 0.25, np.float32)}
    _, params = hub.load(write("edm-skip-edm", tmp_path / "with", state_dict("edm-skip-edm") | buffers))
    jax.tree.map(np.testing.assert_array_equal, params, hub.load(write("edm-skip-edm", tmp_path / "without"))[1])


def test_resolutions_that_no_level_has_are_allowed(tmp_path):
    model, _ = hub.load(write("edm-ddpmpp-edm", tmp_path, attn_resolutions=[32, 16]))
    assert model.attention_resolutions == (16,)


def test_settings_that_are_not_covered_are_refused(tmp_path):
    with pytest.raises(hub.CheckpointError, match="channel_mult_emb=2 is not covered; it could be 4"):
        hub.load(write("edm-ddpmpp-edm", tmp_path, channel_mult_emb=2))


def test_layouts_refuse_what_they_cannot_express(tmp_path):
    model, params = hub.load(write("edm-ddpmpp-edm", tmp_path))
    with pytest.raises(hub.CheckpointError, match="out_channels=4: EDM's networks give 3 or 6 for 3"):
        hub.save(model.clone(out_channels=4), params, tmp_path)
    with pytest.raises(hub.CheckpointError, match="encoder='skip': DhariwalUNet has 'standard'"):
        hub.save(model.clone(family="adm", encoder="skip"), params, tmp_path)
