"""EDM2's networks: D(x; sigma) and u(sigma) of the released code, and the way back to the file."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax import hub
from diffusion_jax.diffusion import preconditioning
from tests import golden

# The second has another filter, other balances, narrow heads, clipping that clips, and no classes.
NAMES = ("edm2", "edm2-uncond")


def state_dict(name: str) -> dict[str, np.ndarray]:
    buffers = {key: value for key, value in golden.load(name).items() if key.endswith((".freqs", ".phases"))}
    return {key: np.asarray(value) for key, value in (golden.fill_tensors(name) | buffers).items()}


def write(name: str, directory: Path, **settings) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(golden.config(name) | settings))
    save_file(state_dict(name), directory / "model.safetensors")
    return directory


@functools.partial(jax.jit, static_argnames="model")
def apply(model, params, sample, timestep, class_labels):
    variables = {"params": params}
    output = model.apply(variables, sample=sample, timestep=timestep, class_labels=class_labels)
    return output, model.apply(variables, timestep, method="log_variance")


@pytest.mark.parametrize("name", NAMES)
def test_denoised_and_log_variance_are_the_references(name, tmp_path):
    model, params = hub.load(write(name, tmp_path))
    recorded = golden.load(name)
    c = preconditioning.edm(recorded["sigma"].astype(np.float64))
    c_skip, c_out, c_in = (np.float32(factor)[:, None, None, None] for factor in c[:3])
    # the last label is the null class, a vector of zeros there
    labels = recorded.get("class_labels")
    output, log_variance = apply(model, params, c_in * recorded["x"], np.float32(c.c_noise), labels)
    denoised, expected = c_skip * recorded["x"] + c_out * output, recorded["denoised"]
    assert np.linalg.norm(denoised - expected) / np.linalg.norm(expected) < 5e-6
    # the network alone, whose share of D is small at low noise
    network = (expected - c_skip * recorded["x"]) / c_out
    np.testing.assert_allclose(output, network, atol=1e-4 * np.abs(network).max())
    np.testing.assert_allclose(log_variance, recorded["log_variance"], atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_bit_identical(name, tmp_path):
    model, params = hub.load(write(name, tmp_path / "there"))
    hub.save(model, params, tmp_path / "back")
    again, loaded = hub.load(tmp_path / "back")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    original, written = state_dict(name), load_file(tmp_path / "back" / "model.safetensors")
    assert written.keys() == original.keys()
    for tensor, value in original.items():
        assert written[tensor].shape == value.shape, tensor
        np.testing.assert_array_equal(written[tensor], value, err_msg=tensor)


def test_settings_that_are_not_covered_are_refused(tmp_path):
    with pytest.raises(hub.CheckpointError, match="channel_mult_emb=2 is not covered; it could be null"):
        hub.load(write("edm2", tmp_path, channel_mult_emb=2))


def test_the_layout_refuses_what_it_cannot_express(tmp_path):
    model, params = hub.load(write("edm2", tmp_path))
    with pytest.raises(hub.CheckpointError, match="out_channels=8: EDM2's networks give as many as they take, 4"):
        hub.save(model.clone(out_channels=8), params, tmp_path)
