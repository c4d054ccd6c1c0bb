"""Diffusion transformers: outputs of diffusers and of the papers' code, and the way back to the files."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax import hub
from diffusion_jax.models.dit import DiT
from tests import golden

NAMES = ("dit", "dit-original", "sit-original")
EMBEDDERS = "transformer_blocks.{}.norm1.emb."


def write(name: str, directory: Path, tensors: dict[str, np.ndarray] | None = None, **settings) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(golden.config(name) | settings))
    stem = "diffusion_pytorch_model" if name == "dit" else "model"
    save_file(golden.fill_tensors(name) if tensors is None else tensors, directory / f"{stem}.safetensors")
    return directory


@functools.partial(jax.jit, static_argnames="model")
def apply(model, params, hidden_states, timestep, class_labels):
    return model.apply({"params": params}, hidden_states=hidden_states, timestep=timestep, class_labels=class_labels)


def run(model, params, name: str) -> tuple[np.ndarray, np.ndarray]:
    recorded = golden.load(name)
    out = apply(model, params, recorded["sample"], recorded["timesteps"], recorded["class_labels"])
    return np.asarray(out), recorded["out"]


def converted() -> dict[str, np.ndarray]:
    """diffusers' tensors as its conversion of the papers' weights writes them: block 0's embedding in every block."""
    tensors = golden.fill_tensors("dit")
    first = EMBEDDERS.format(0)
    for name in list(tensors):
        if name.startswith(first):
            tensors[EMBEDDERS.format(1) + name.removeprefix(first)] = tensors[name]
    return tensors


@pytest.mark.parametrize("name", NAMES)
def test_output_is_the_references(name, tmp_path):
    out, expected = run(*hub.load(write(name, tmp_path)), name)
    assert np.linalg.norm(out - expected) / np.linalg.norm(expected) < 5e-6
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())


def test_equal_embeddings_are_one(tmp_path):
    model, params = hub.load(write("dit", tmp_path, converted()))
    assert model.shared_conditioning
    assert "conditioning" in params and "conditioning_0" not in params
    # the same function with every copy kept
    copies = model.clone(shared_conditioning=False)
    own = {key: value for key, value in params.items() if key != "conditioning"}
    own |= {f"conditioning_{i}": params["conditioning"] for i in range(model.depth)}
    np.testing.assert_array_equal(run(model, params, "dit")[0], run(copies, own, "dit")[0])


@pytest.mark.parametrize("shared", [False, True])
def test_round_trip_is_bit_identical(shared, tmp_path):
    original = converted() if shared else golden.fill_tensors("dit")
    model, params = hub.load(write("dit", tmp_path / "there", original))
    hub.save(model, params, tmp_path / "back")
    again, loaded = hub.load(tmp_path / "back")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    written = load_file(tmp_path / "back" / "diffusion_pytorch_model.safetensors")
    assert written.keys() == original.keys()
    for tensor, value in original.items():
        np.testing.assert_array_equal(written[tensor], value, err_msg=tensor)
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    for field, value in golden.config("dit").items():
        if field != "_diffusers_version":
            assert config[field] == value, field


def test_round_trip_of_the_papers_layout(tmp_path):
    model, params = hub.load(write("dit-original", tmp_path / "there"))
    hub.save(model, params, tmp_path / "back", format="original")
    again, loaded = hub.load(tmp_path / "back")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_sit_is_saved_without_its_unused_half(tmp_path):
    model, params = hub.load(write("sit-original", tmp_path / "there"))
    assert model.out_channels == 4
    hub.save(model, params, tmp_path / "back", format="original")
    again, loaded = hub.load(tmp_path / "back")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_older_names_and_stored_constants(tmp_path):
    # Transformer2DModel until diffusers 0.28; the positions are a constant that some files hold
    tensors = golden.fill_tensors("dit") | {"pos_embed.pos_embed": np.zeros((1, 64, 64), np.float32)}
    model, params = hub.load(write("dit", tmp_path / "old", tensors, _class_name="Transformer2DModel"))
    new_model, new_params = hub.load(write("dit", tmp_path / "new"))
    assert model == new_model
    jax.tree.map(np.testing.assert_array_equal, params, new_params)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activation_fn": "geglu"}, "activation_fn='geglu' is not covered; it could be 'gelu-approximate'"),
        ({"norm_type": "layer_norm"}, "norm_type='layer_norm' is not covered"),
        ({"attention_bias": False}, "attention_bias=False is not covered"),
        ({"num_attention_heads": 3, "attention_head_dim": 7}, "width=21"),
        ({"num_layers": 3}, "missing: transformer_blocks.2."),
    ],
)
def test_settings_that_are_not_covered_are_refused(settings, message, tmp_path):
    with pytest.raises(hub.CheckpointError, match=message):
        hub.load(write("dit", tmp_path, **settings))


@pytest.mark.parametrize(
    ("fields", "layout", "message"),
    [
        ({}, None, "freq_shift=0.0: DiTTransformer2DModel has 1.0"),
        ({"freq_shift": 1.0}, None, "num_classes=None: DiTTransformer2DModel always has classes"),
        ({"freq_shift": 1.0, "num_classes": 3}, None, "image_size=None"),
        ({"mlp_norm_eps": 1e-5}, "original", "mlp_norm_eps=1e-05: the papers' DiT has 1e-06"),
        ({"num_classes": 3, "out_channels": 5}, "original", "4 or 8 channels out for 4 in"),
    ],
)
def test_layouts_refuse_what_they_cannot_express(fields, layout, message, tmp_path):
    params = {"patch_embedding": {"kernel": np.zeros((2, 2, 4, 8), np.float32)}}
    with pytest.raises(hub.CheckpointError, match=message):
        hub.save(DiT(**fields), params, tmp_path, format=layout)
