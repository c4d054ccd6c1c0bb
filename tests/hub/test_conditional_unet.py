"""Stable Diffusion's U-Nets and ControlNet: outputs of diffusers, and the way back to the files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import hub
from tests import golden
from tests.hub.folders import assert_close, assert_round_trip, write

NAMES = ("unet-sd15", "unet-sd21-linear", "unet-sdxl", "unet-sd15-inpaint")


def arguments(name: str) -> dict:
    recorded = golden.load(name)
    given = {key: recorded[key] for key in ("sample", "encoder_hidden_states")}
    given["timestep"] = recorded["timesteps"]
    if "text_embeds" in recorded:
        given["added_cond_kwargs"] = {key: recorded[key] for key in ("text_embeds", "time_ids")}
    return given


def run(model, params, given, **more):
    return jax.jit(lambda p, given: model.apply({"params": p}, **given, **more))(params, given)


@pytest.mark.parametrize("name", NAMES)
def test_output_is_diffusers(name, tmp_path):
    model, params = hub.load(write(name, tmp_path))
    assert_close(run(model, params, arguments(name)), golden.load(name)["out"])


def test_controlnet_is_diffusers(tmp_path):
    model, params = hub.load(write("controlnet-sd15/controlnet", tmp_path / "controlnet"))
    recorded = golden.load("controlnet-sd15/controlnet")
    given = arguments("controlnet-sd15/controlnet")
    control = {key: recorded[key] for key in ("controlnet_cond", "conditioning_scale")}
    down, mid = run(model, params, given | control)
    assert len(down) == 6
    for i, residual in enumerate(down):
        assert_close(residual, recorded[f"down_{i}"])
    assert_close(mid, recorded["mid"])

    unet, unet_params = hub.load(write("controlnet-sd15/unet", tmp_path / "unet"))
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
    assert_close(run(unet, unet_params, given | residuals), recorded["out"])


@pytest.mark.parametrize("name", [*NAMES, "controlnet-sd15/controlnet"])
def test_round_trip_is_bit_identical(name, tmp_path):
    assert_round_trip(name, tmp_path)


def test_attention_maps_are_asked_for(tmp_path):
    model, params = hub.load(write("unet-sd15", tmp_path))
    given = arguments("unet-sd15")
    apply = jax.jit(lambda p, given: model.apply({"params": p}, **given, mutable=["attention"]))
    out, collections = apply(params, given)
    assert_close(out, golden.load("unet-sd15")["out"])
    maps = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(collections["attention"])}
    # two transformers on the way down, one in the middle, three on the way up; 16x16 latents, 9 tokens
    assert sorted(leaf.shape for leaf in maps.values()) == [(2, 64, 9)] + [(2, 256, 9)] * 5
    for leaf in maps.values():
        np.testing.assert_allclose(leaf.sum(axis=-1), 1.0, rtol=1e-5)
        assert np.ptp(leaf) > 0.05
    # and cost nothing otherwise: a network without collections has no softmax more than its attentions
    plain = jax.make_jaxpr(lambda p, given: model.apply({"params": p}, **given))(params, given)
    asked = jax.make_jaxpr(lambda p, given: model.apply({"params": p}, **given, mutable=["attention"]))(params, given)
    assert str(asked).count("exp ") == str(plain).count("exp ") + len(maps)


def test_guess_mode_weakens_high_resolutions(tmp_path):
    model, params = hub.load(write("controlnet-sd15/controlnet", tmp_path))
    recorded = golden.load("controlnet-sd15/controlnet")
    given = arguments("controlnet-sd15/controlnet") | {"controlnet_cond": recorded["controlnet_cond"]}
    down, mid = run(model, params, given, guess_mode=True)
    unscaled = 1 / recorded["conditioning_scale"]
    assert_close(down[0], 0.1 * unscaled * recorded["down_0"])
    assert_close(down[3], 10**-0.5 * unscaled * recorded["down_3"])
    assert_close(mid, unscaled * recorded["mid"])


def test_recomputation_keeps_less(tmp_path):
    model, params = hub.load(write("unet-sdxl", tmp_path))
    given = arguments("unet-sdxl")

    def kept(model) -> int:
        """Numbers that the backward pass takes from the forward pass."""
        pullback = jax.eval_shape(lambda p: jax.vjp(lambda p: model.apply({"params": p}, **given), p)[1], params)
        return sum(leaf.size for leaf in jax.tree.leaves(pullback))

    assert kept(model.clone(remat=True)) < 0.5 * kept(model)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("unet-sd15", {"time_embedding_dim": 64}, "time_embedding_dim=64 is not covered; it could be None"),
        ("unet-sd15", {"time_cond_proj_dim": 256}, "1 missing: time_embedding.cond_proj.weight"),
        ("unet-sd15", {"num_attention_heads": 4}, "num_attention_heads=4"),
        ("unet-sd15", {"down_block_types": ["KDownBlock2D"] * 2}, "it could be DownBlock2D or CrossAttnDownBlock2D"),
        ("unet-sd15", {"up_block_types": ["UpBlock2D"] * 2}, "the mirror of down_block_types"),
        ("unet-sd15", {"attention_head_dim": [1, 2, 4]}, "attention_head_dim=.* one value or 2"),
        ("unet-sd15", {"attention_head_dim": 24}, "widths=.*num_heads"),
        ("unet-sdxl", {"addition_time_embed_dim": None}, "addition_embed_type='text_time' with"),
        ("unet-sd15", {"use_linear_projection": True}, r"proj_in.weight is \[32, 32, 1, 1\], not \[32, 32\]"),
    ],
)
def test_settings_that_are_not_covered_are_refused(name, settings, message, tmp_path):
    with pytest.raises(hub.CheckpointError, match=message):
        hub.load(write(name, tmp_path, **settings))


def test_inputs_that_do_not_fit_are_refused(tmp_path):
    model, params = hub.load(write("unet-sdxl", tmp_path / "unet"))
    given = arguments("unet-sdxl")
    apply = lambda **changes: model.apply({"params": params}, **(given | changes))  # noqa: E731
    with pytest.raises(ValueError, match="holds nothing; this network needs text_embeds and time_ids"):
        apply(added_cond_kwargs=None)
    with pytest.raises(ValueError, match="sample of 15 pixels: its 2 levels need a multiple of 2"):
        apply(sample=jnp.zeros((2, 15, 16, 4)))
    with pytest.raises(ValueError, match=r"encoder_hidden_states \(1, 9, 64\)"):
        apply(encoder_hidden_states=jnp.zeros((1, 9, 64)))
    with pytest.raises(ValueError, match="holds 1 arrays; this network takes 6"):
        apply(down_block_additional_residuals=[jnp.zeros((2, 16, 16, 32))])
    with pytest.raises(ValueError, match="num_classes=None, but class_labels were given"):
        apply(class_labels=jnp.zeros(2, jnp.int32))
    control, control_params = hub.load(write("controlnet-sd15/controlnet", tmp_path / "controlnet"))
    with pytest.raises(ValueError, match=r"controlnet_cond \(2, 64, 64, 3\): its first axes must be \(2, 128, 128\)"):
        control.apply(
            {"params": control_params},
            **arguments("controlnet-sd15/controlnet"),
            controlnet_cond=jnp.zeros((2, 64, 64, 3)),
        )
