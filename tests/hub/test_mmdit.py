"""Stable Diffusion 3's transformer: outputs of diffusers, and the way back to the files.

The golden "mmdit-sd35" was made like "mmdit-sd3", by diffusers 0.42.1 and the fill rule: three blocks, two of them with
dual attention, normalised queries and keys, latents that are not square.
"""

import jax
import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.models.mmdit import position_table
from tests import golden
from tests.hub.folders import assert_close, assert_round_trip, write

NAMES = ("mmdit-sd3", "mmdit-sd35")
POSITIONS = "pos_embed.pos_embed"


def run(model, params, name: str):
    recorded = golden.load(name)
    given = {key: recorded[key] for key in ("encoder_hidden_states", "pooled_projections")}
    given |= {"hidden_states": recorded["sample"], "timestep": recorded["timesteps"]}
    return jax.jit(lambda p, given: model.apply({"params": p}, **given))(params, given), recorded["out"]


@pytest.mark.parametrize("name", NAMES)
def test_output_is_diffusers(name, tmp_path):
    assert_close(*run(*hub.load(write(name, tmp_path)), name))


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_bit_identical(name, tmp_path):
    assert_round_trip(name, tmp_path, ignored=(POSITIONS,))


def test_saved_positions_are_the_formula_and_not_a_parameter(tmp_path):
    model, params = hub.load(write("mmdit-sd35", tmp_path / "without"))
    hub.save(model, params, tmp_path / "with")
    again, loaded = hub.load(tmp_path / "with")
    assert not again.stored_positions
    assert "positions" not in loaded


def test_other_positions_are_kept(tmp_path):
    model, _ = hub.load(write("mmdit-sd35", tmp_path / "formula"))
    table = position_table(model)[None].astype(np.float32)
    name, tensors = "mmdit-sd35", golden.fill_tensors("mmdit-sd35")
    same = hub.load(write(name, tmp_path / "half", tensors | {POSITIONS: table.astype(np.float16)}))
    assert not same[0].stored_positions
    # a table of a file's own: the same one moved by a patch, so that other rows are cut from its middle
    moved = np.roll(table.reshape(12, 12, -1), 1, axis=0).reshape(table.shape)
    model, params = hub.load(write(name, tmp_path / "own", tensors | {POSITIONS: moved}))
    assert model.stored_positions
    out, expected = run(model, params, name)
    assert np.abs(out - expected).max() > 1e-2
    params["positions"] = table
    assert_close(run(model, params, name)[0], expected)
    hub.save(model, params | {"positions": moved}, tmp_path / "back")
    np.testing.assert_array_equal(hub.load(tmp_path / "back")[1]["positions"], moved)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"qk_norm": "layer_norm"}, "qk_norm='layer_norm' is not covered; it could be None or 'rms_norm'"),
        ({"caption_projection_dim": 64}, "caption_projection_dim=64 is not covered; it could be 32"),
        ({"num_layers": 4}, r"32 missing: transformer_blocks\.2\.attn\.to_add_out\.bias, \.\.\.; 2 of"),
        ({"dual_attention_layers": [0]}, "left over: .*transformer_blocks.1.attn2"),
        ({"patch_size": 0}, "patch_size=0"),
    ],
)
def test_settings_that_are_not_covered_are_refused(settings, message, tmp_path):
    with pytest.raises(hub.CheckpointError, match=message):
        hub.load(write("mmdit-sd35", tmp_path, **settings))


def test_latents_beyond_the_table_are_refused(tmp_path):
    model, params = hub.load(write("mmdit-sd35", tmp_path))
    recorded = golden.load("mmdit-sd35")
    with pytest.raises(ValueError, match=r"latents of 26x16: .* multiples of patch_size=2, up to 24"):
        model.apply(
            {"params": params},
            np.zeros((2, 26, 16, 16), np.float32),
            recorded["timesteps"],
            recorded["encoder_hidden_states"],
            recorded["pooled_projections"],
        )
