"""Autoencoders: outputs of diffusers, tiles and slices, and the way back to the files.

The golden "vae-kl-tiled" is the network of "vae-kl" after ``enable_tiling()`` in diffusers 0.42.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.models.autoencoder import AutoencoderKL
from tests import golden
from tests.hub.folders import assert_close, assert_round_trip, write

KL = ("vae-kl", "vae-kl-16ch")


def run(model, params, x, method):
    return jax.jit(lambda p, x: model.apply({"params": p}, x, method=method))(params, x)


@pytest.mark.parametrize("name", KL)
def test_output_is_diffusers(name, tmp_path):
    model, params = hub.load(write(name, tmp_path))
    recorded = golden.load(name)
    mean, logvar = run(model, params, recorded["image"], "encode")
    assert_close(mean, recorded["mean"])
    assert_close(logvar, recorded["logvar"])
    assert_close(run(model, params, recorded["mean"], "decode"), recorded["decoded"])


def test_output_of_the_tiny_autoencoder_is_diffusers(tmp_path):
    model, params = hub.load(write("vae-tiny", tmp_path))
    recorded = golden.load("vae-tiny")
    assert_close(run(model, params, recorded["image"], "encode"), recorded["latents"])
    assert_close(run(model, params, recorded["latents"], "decode"), recorded["decoded"])


def test_tiles_are_blended_as_in_diffusers(tmp_path):
    model, params = hub.load(write("vae-kl", tmp_path))
    tiles = model.clone(tile_size=32)
    recorded = golden.load("vae-kl-tiled")  # images of 72 x 56 pixels: tiles of four shapes
    mean, logvar = run(tiles, params, recorded["image"], "encode")
    assert_close(mean, recorded["mean"])
    assert_close(logvar, recorded["logvar"])
    assert_close(run(tiles, params, recorded["latents"], "decode"), recorded["decoded"])


def test_an_image_of_one_tile_is_not_tiled(tmp_path):
    model, params = hub.load(write("vae-kl", tmp_path))
    recorded = golden.load("vae-kl")
    out = run(model.clone(tile_size=32, slicing=True), params, recorded["mean"], "decode")
    assert_close(out, recorded["decoded"])


@pytest.mark.parametrize("name", [*KL, "vae-tiny"])
def test_round_trip_is_bit_identical(name, tmp_path):
    assert_round_trip(name, tmp_path)


def test_log_variance_is_clamped(tmp_path):
    model, params = hub.load(write("vae-kl", tmp_path))
    params["quant_conv"]["bias"] = params["quant_conv"]["bias"] + 1000.0
    _, logvar = run(model, params, golden.load("vae-kl")["image"], "encode")
    np.testing.assert_array_equal(logvar, 20.0)


def test_stable_diffusions_autoencoder_has_its_size():
    shapes = jax.eval_shape(AutoencoderKL().init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 83_653_863


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("vae-kl", {"act_fn": "relu"}, "act_fn='relu' is not covered; it could be 'silu'"),
        ("vae-kl", {"up_block_types": ["AttnUpDecoderBlock2D"] * 2}, "it could be UpDecoderBlock2D for each"),
        ("vae-kl", {"latents_mean": [0.0] * 4}, "latents_mean"),
        ("vae-kl", {"use_quant_conv": False}, "left over: quant_conv"),
        ("vae-kl", {"norm_num_groups": 24}, "norm_groups=24"),
        ("vae-tiny", {"num_encoder_blocks": [1, 2, 3]}, "the same number of stages"),
        ("vae-tiny", {"upsample_fn": "bilinear"}, "upsample_fn='bilinear'"),
    ],
)
def test_settings_that_are_not_covered_are_refused(name, settings, message, tmp_path):
    with pytest.raises(hub.CheckpointError, match=message):
        hub.load(write(name, tmp_path, **settings))


def test_images_and_tiles_that_do_not_fit_are_refused(tmp_path):
    model, params = hub.load(write("vae-kl", tmp_path))
    with pytest.raises(ValueError, match="image of 33 pixels: the autoencoder needs multiples of 2"):
        model.apply({"params": params}, jnp.zeros((1, 33, 32, 3)), method="encode")
    with pytest.raises(ValueError, match="tile_size=30: it must be a multiple of 8"):
        model.clone(tile_size=30).apply({"params": params}, jnp.zeros((1, 32, 32, 3)), method="encode")
