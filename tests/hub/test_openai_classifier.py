"""guided-diffusion's classifiers: logits, the gradient that guides, the way back to the file, released state dicts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from diffusion_jax import hub
from diffusion_jax.hub import research
from diffusion_jax.hub.__main__ import main
from diffusion_jax.models import UNetClassifier
from tests import golden
from tests.hub.folders import write
from tests.hub.test_convert import assert_same_network, write_state_dict

POOLS = {
    "guided-classifier-attention": "attention",
    "guided-classifier-adaptive": "adaptive",
    "guided-classifier-spatial": "spatial",
    "guided-classifier-spatial-v2": "spatial_v2",
}


@pytest.mark.parametrize("name", POOLS)
def test_logits_and_their_gradient_are_the_references(name, tmp_path):
    model, params = hub.load(write(name, tmp_path))
    assert isinstance(model, UNetClassifier) and model.pool == POOLS[name]
    recorded = golden.load(name)
    x, t, y = (jnp.asarray(recorded[key]) for key in ("x", "timesteps", "y"))

    def log_probability(x):
        logits = model.apply({"params": params}, sample=x, timestep=t)
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0]
        return chosen.sum(), (logits, chosen)

    gradient, (logits, chosen) = jax.jit(jax.grad(log_probability, has_aux=True))(x)
    for out, expected in ((logits, "logits"), (chosen, "log_probability"), (gradient, "gradient")):
        wanted = recorded[expected]
        np.testing.assert_allclose(out, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max(), err_msg=expected)


@pytest.mark.parametrize("name", POOLS)
def test_round_trip_is_bit_identical(name, tmp_path):
    model, params = hub.load(write(name, tmp_path / "there"))
    hub.save(model, params, tmp_path / "back")
    again, loaded = hub.load(tmp_path / "back")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    if not golden.config(name)["use_new_attention_order"]:  # written in the legacy order
        written, original = load_file(tmp_path / "back" / "model.safetensors"), golden.fill_tensors(name)
        assert written.keys() == original.keys()
        for tensor, value in original.items():
            np.testing.assert_array_equal(written[tensor], value, err_msg=tensor)
        settings = json.loads((tmp_path / "back" / "config.json").read_text())
        assert {field: settings[field] for field in golden.config(name)} == golden.config(name)


@pytest.mark.parametrize("name", POOLS)
def test_a_state_dict_is_told_from_a_u_net(name, tmp_path, monkeypatch):
    stated = {"num_head_channels": 32}
    if POOLS[name] != "attention":
        stated["image_size"] = 16
    for field in ("num_res_blocks", "use_new_attention_order"):
        if POOLS[name] in ("spatial_v2", "adaptive"):
            stated[field] = golden.config(name)[field]
    write_state_dict(tmp_path / "model.pt", golden.fill_tensors(name), monkeypatch)
    options = [part for key, value in stated.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    assert main(["convert", str(tmp_path / "model.pt"), str(tmp_path / "converted"), *options]) == 0
    assert_same_network(tmp_path / "converted", write(name, tmp_path / "expected"))


# guided-diffusion's create_classifier: side -> depth, multipliers, parameters counted there
RELEASED = {
    64: (4, (1, 2, 3, 4), 65_438_568),
    128: (2, (1, 1, 2, 3, 4), 42_568_040),
    256: (2, (1, 1, 2, 2, 4, 4), 54_096_360),
    512: (2, (0.5, 1, 1, 2, 2, 4, 4), 54_448_360),
}


@pytest.mark.parametrize("side", RELEASED)
def test_the_settings_of_the_released_files_follow_from_their_shapes(side):
    depth, multipliers, count = RELEASED[side]
    model = UNetClassifier(num_res_blocks=depth, channel_mults=multipliers, image_size=side)
    sample = jnp.zeros((1, side, side, 3))
    leaves = jax.eval_shape(lambda: model.init(jax.random.key(0), sample, jnp.zeros(1)))["params"]
    shapes = {path: leaf.shape for path, leaf in hub.tensors.flatten(leaves).items()}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == count
    layout = hub.openai_classifier.tensors(model, shapes, {})
    kind, _ = research.state_dict({tensor.name: tensor.shape for tensor in layout}) or (None, None)
    assert kind is not None
    for name in (f"{side}x{side}_classifier", "mine"):  # the depth is known by name, and by where attention ends
        settings = kind.settings({tensor.name: tensor.shape for tensor in layout}, {}, name)
        assert hub.openai_classifier.build(settings, "float32") == model


def test_what_a_file_does_not_say_is_asked_for(tmp_path, monkeypatch, capsys):
    write_state_dict(tmp_path / "model.pt", golden.fill_tensors("guided-classifier-spatial-v2"), monkeypatch)
    assert main(["convert", str(tmp_path / "model.pt"), str(tmp_path / "converted")]) == 2
    assert "--set num_res_blocks=N" in capsys.readouterr().err.splitlines()[-1]
