"""Settings of diffusers' networks that few checkpoints have: its outputs, and the way back to the file.

The goldens were made by diffusers 0.42.1 on the CPU and the fill rule of tests/golden.py; they hold the keywords of its
forward(), images channels last, and what it gave.
"""

import jax
import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.models.conditional_unet import guidance_embedding
from diffusion_jax.models.unet import UNet
from tests import golden
from tests.hub.folders import assert_close, assert_round_trip, write

NAMES = (
    "unet2d-fourier", "unet2d-options", "unet-guided-embedding", "unet-class-projection", "controlnet-pooled",
    "mmdit-controlnet/controlnet",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_output_is_diffusers(name, tmp_path):
    model, params = hub.load(write(name, tmp_path))
    recorded = golden.load(name)
    given = {key: value for key, value in recorded.items() if not key.startswith("out_")}
    static = {"guess_mode": bool(given.pop("guess_mode"))} if "guess_mode" in given else {}
    outputs = jax.tree.leaves(jax.jit(lambda p, x: model.apply({"params": p}, **x, **static))(params, given))
    for i, output in enumerate(outputs):
        assert_close(output, recorded[f"out_{i}"])
    assert f"out_{len(outputs)}" not in recorded


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_bit_identical(name, tmp_path):
    assert_round_trip(name, tmp_path, ignored=("pos_embed.pos_embed",))


def test_guidance_embedding_is_that_of_latent_consistency_models():
    # by hand: four channels have the frequencies 1 and 1e-4
    got = guidance_embedding(np.array([0.0, 7.5], np.float32), 4)
    np.testing.assert_allclose(got[0], [0, 0, 1, 1], atol=1e-7)
    np.testing.assert_allclose(got[1], [np.sin(7500), np.sin(0.75), np.cos(7500), np.cos(0.75)], atol=1e-3)


def test_a_guidance_scale_for_a_network_without_is_refused(tmp_path):
    model, params = hub.load(write("unet-class-projection", tmp_path))
    given = {key: value for key, value in golden.load("unet-class-projection").items() if not key.startswith("out_")}
    with pytest.raises(ValueError, match=r"timestep_cond \(2, 8\): guidance_channels=None"):
        model.apply({"params": params}, **given, timestep_cond=np.zeros((2, 8), np.float32))
    given.pop("class_labels")
    with pytest.raises(ValueError, match="class_embedding='projection', but class_labels is None"):
        model.apply({"params": params}, **given)


@pytest.mark.parametrize("scan", [False, True])
def test_the_transformer_takes_the_residuals_of_its_controlnet(scan, tmp_path):
    """Three blocks, two residuals: the first goes to blocks 0 and 1, the second to none, as block 2 is the last."""
    model, params = hub.load(write("mmdit-controlnet/transformer", tmp_path))
    recorded, control = golden.load("mmdit-controlnet/transformer"), golden.load("mmdit-controlnet/controlnet")
    expected = recorded.pop("out")
    model, params = hub.scanned(model, params) if scan else (model, params)
    residuals = [control["out_0"], control["out_1"]]
    apply = jax.jit(lambda p, x, r: model.apply({"params": p}, **x, block_controlnet_hidden_states=r))
    assert_close(apply(params, recorded, residuals), expected)
    with pytest.raises(ValueError, match="block_controlnet_hidden_states holds 4 arrays; this network takes 1 to 3"):
        apply(params, recorded, residuals * 2)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("mmdit-controlnet/controlnet", {"use_pos_embed": False}, "SD3ControlNetModel with use_pos_embed=False is not"),
        ("mmdit-controlnet/controlnet", {"joint_attention_dim": None}, "joint_attention_dim=None is not covered"),
        ("unet2d-options", {"act_fn": "tanh"}, "act_fn='tanh' is not covered; it could be 'silu' or 'gelu'"),
        ("unet2d-options", {"time_embedding_type": "learned"}, "it could be 'positional' or 'fourier'"),
        ("unet2d-options", {"mid_block_scale_factor": 0}, "mid_scale=0: it must be a positive number"),
        ("unet-class-projection", {"projection_class_embeddings_input_dim": None}, "'projection' needs projection_cl"),
        ("unet-class-projection", {"class_embed_type": "identity"}, "class_embed_type='identity' is not covered"),
        ("unet-class-projection", {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type='UNetMidBlock2"),
        ("unet-guided-embedding", {"only_cross_attention": [True]}, "one value or 2, as in block_out_channels"),
        ("unet-guided-embedding", {"reverse_transformer_layers_per_block": [[1], [2]]}, "one number a level"),
        ("controlnet-pooled", {"mid_block_type": None}, "mid_block_type=None is not covered"),
    ],
)
def test_settings_that_are_not_covered_are_refused(name, settings, message, tmp_path):
    with pytest.raises(hub.CheckpointError, match=message):
        hub.load(write(name, tmp_path, **settings))


@pytest.mark.parametrize("layout", ["guided-diffusion", "ddpm"])
def test_other_layouts_refuse_them(layout, tmp_path):
    model = UNet(channels=32, channel_mults=(1, 2), attention_resolutions=(4,), activation="gelu")
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), np.zeros((1, 8, 8, 3), np.float32), 1))["params"]
    with pytest.raises(hub.CheckpointError, match=r"activation='gelu': .* has 'silu'; format='diffusers' can hold"):
        hub.save(model, params, tmp_path, format=layout)
