"""Stable Diffusion in one file, under its original names.

The golden names.json was made by the conversion of diffusers 0.42.1 (convert_ldm_unet_checkpoint and
convert_ldm_vae_checkpoint): original name -> diffusers' name, for networks of the real settings and for other goldens.
"""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax import hub
from diffusion_jax.hub import autoencoder, compvis, conditional_unet
from diffusion_jax.hub.format import parameter_shapes
from tests import golden
from tests.hub.folders import write

NAMES = golden.config("single-file", "names.json")
PREFIXES = {"unet": "model.diffusion_model.", "vae": "first_stage_model."}
SDXL = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def original(name: str, prefix: str) -> dict[str, np.ndarray]:
    """A golden's weights under their original names; there the autoencoder's attention is made of 1x1 convolutions."""
    tensors = golden.fill_tensors(name)
    renamed = {}
    for old, new in NAMES[name].items():
        value = tensors[new]
        if ".attn_1." in old and value.ndim == 2:
            value = value[:, :, None, None]
        renamed[prefix + old] = value
    return renamed


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A file as it is published: networks, averages that are not used, tables."""
    path = tmp_path_factory.mktemp("single") / "model.safetensors"
    tensors = original("unet-sd15", PREFIXES["unet"]) | original("vae-kl", PREFIXES["vae"])
    save_file(tensors | {"model_ema.decay": np.ones(1, np.float32), "alphas_cumprod": np.ones(9, np.float32)}, path)
    return path


@pytest.mark.parametrize(("part", "name"), [("unet", "unet-sd15"), ("vae", "vae-kl")])
def test_networks_are_those_of_the_folders(part, name, checkpoint, tmp_path):
    given = {"attention_head_dim": 8, "sample_size": golden.config(name)["sample_size"]}
    model, params = hub.load(checkpoint, part=part, config=given)
    expected, expected_params = hub.load(write(name, tmp_path))
    assert model == expected
    jax.tree.map(np.testing.assert_array_equal, params, expected_params)


def test_sdxl_in_half_precision(tmp_path):
    # the layout of SDXL, in half precision, without another network beside it: no part has to be named
    tensors = {name: value.astype(np.float16) for name, value in original("unet-sdxl", PREFIXES["unet"]).items()}
    save_file(tensors, tmp_path / "xl.safetensors")
    given = {"attention_head_dim": [2, 4], "addition_time_embed_dim": 8, "sample_size": 16}
    model, params = hub.load(tmp_path / "xl.safetensors", config=given, param_dtype="bfloat16")
    expected, expected_params = hub.load(write("unet-sdxl", tmp_path / "folder"))
    assert model == expected
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16).astype(jax.numpy.bfloat16), expected_params)
    jax.tree.map(np.testing.assert_array_equal, params, half)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sd15", {"cross_attention_dim": 768, "sample_size": 64}),
        (
            "sd15",  # the names of Stable Diffusion 2 are the same
            {
                "cross_attention_dim": 1024,
                "attention_head_dim": [5, 10, 20, 20],
                "use_linear_projection": True,
                "sample_size": 96,
            },
        ),
        ("sdxl", SDXL),
    ],
)
def test_settings_of_the_published_unets_follow_from_their_shapes(name, settings):
    form = conditional_unet.UNET_FORMAT
    model = form.build(settings, "float32")
    layout = form.tensors(model, parameter_shapes(model, lambda: form.inputs(model, settings)), settings)
    shapes = {tensor.name: tensor.shape for tensor in layout}
    found = compvis.unet_config({old: shapes[new] for old, new in NAMES[name].items()}, {})
    assert form.build(found, "float32") == model


@pytest.mark.parametrize(("family", "scaling"), [("Stable Diffusion 1", 0.18215), ("SDXL", 0.13025), (None, 0.18215)])
def test_settings_of_the_published_autoencoders_follow_from_their_shapes(family, scaling):
    form = autoencoder.FORMAT
    model = form.build(VAE, "float32")
    shapes = {
        t.name: t.shape for t in form.tensors(model, parameter_shapes(model, lambda: form.inputs(model, VAE)), VAE)
    }
    found = compvis.vae_config({old: shapes[new] for old, new in NAMES["vae"].items()}, {}, family)
    size = 1024 if family == "SDXL" else 512
    assert form.build(found, "float32") == model.clone(scaling_factor=scaling, sample_size=size)


def test_files_that_do_not_fit_are_refused(checkpoint, tmp_path):
    with pytest.raises(hub.CheckpointError, match=r"part=None; this file holds 'unet', 'vae'"):
        hub.load(checkpoint)
    with pytest.raises(hub.CheckpointError, match="its U-Net reads text of width 32; known are 768"):
        hub.load(checkpoint, part="unet")
    with pytest.raises(hub.CheckpointError, match=r"nothing\.safetensors: no such file"):
        hub.load(tmp_path / "nothing.safetensors")
    save_file({"weight": np.zeros(1, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(hub.CheckpointError, match=r"none of its tensors .* model\.diffusion_model\.input_blocks"):
        hub.load(tmp_path / "other.safetensors")
    tensors = original("unet-sd15", PREFIXES["unet"])
    del tensors[PREFIXES["unet"] + "out.0.bias"]
    tensors[PREFIXES["unet"] + "extra"] = np.zeros(1, np.float32)
    save_file(tensors, tmp_path / "holes.safetensors")
    with pytest.raises(hub.CheckpointError, match=r"1 missing: out\.0\.bias; 1 left over: extra"):
        hub.load(tmp_path / "holes.safetensors", config={"attention_head_dim": 8})
