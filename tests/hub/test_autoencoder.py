"""Autoencoders: outputs of diffusers, tiles and slices, and the way back to the files.

The golden "vq" was made by diffusers 0.42.1 and the fill rule; "plain" is what it decodes without quantising.
The golden "vae-kl-tiled" is the network of "vae-kl" after ``enable_tiling()`` in diffusers 0.42.1.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.models.autoencoder import AutoencoderKL
from diffusion_jax.pipelines import latents
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


def test_output_of_the_quantised_autoencoder_is_diffusers(tmp_path):
    model, params = hub.load(write("vq", tmp_path))
    recorded = golden.load("vq")
    assert_close(run(model, params, recorded["image"], "encode"), recorded["latents"])
    assert_close(run(model, params, recorded["latents"], "decode"), recorded["decoded"])
    plain = jax.jit(lambda p, x: model.apply({"params": p}, x, False, method="decode"))(params, recorded["latents"])
    assert_close(plain, recorded["plain"])
    assert np.abs(recorded["plain"] - recorded["decoded"]).max() > 1e-2


def test_moments_of_the_latents_scale_each_channel(tmp_path):
    """SDXL's rule in diffusers, by hand: decode(x std / scaling_factor + mean), and the inverse of it."""
    mean, std = [0.1, -0.2, 0.3, 0.4], [2.0, 1.0, 0.5, 1.5]
    model, params = hub.load(write("vae-kl", tmp_path / "there", latents_mean=mean, latents_std=std))
    recorded = golden.load("vae-kl")
    worked = (recorded["mean"] - np.array(mean)) / np.array(std) * model.scaling_factor
    encoded = jax.jit(lambda p, x: latents.encode(model, p, x))(params, recorded["image"])
    assert_close(encoded, worked)
    decoded = jax.jit(lambda p, x: latents.decode(model, p, x))(params, worked.astype(np.float32))
    assert_close(decoded, recorded["decoded"])
    hub.save(model, params, tmp_path / "back")
    again, _ = hub.load(tmp_path / "back")
    assert (again.latents_mean, again.latents_std) == (tuple(mean), tuple(std))


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


@pytest.mark.parametrize("name", [*KL, "vae-tiny", "vq"])
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
        ("vae-kl", {"latents_mean": [0.0] * 4}, "latents_mean and latents_std: give both or neither"),
        ("vae-kl", {"latents_mean": [0.0], "latents_std": [1.0]}, r"latents_mean=\(0.0,\): it must hold 4 numbers"),
        ("vae-kl", {"latents_mean": [0.0] * 4, "latents_std": [0, 1, 1, 1]}, "latents_std=.* they must be positive"),
        ("vq", {"norm_type": "spatial"}, "norm_type='spatial' is not covered; it could be 'group'"),
        ("vq", {"vq_embed_dim": 3}, "of the wrong shape: .*quant_conv"),
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
