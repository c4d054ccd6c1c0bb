"""U-Net checkpoints: outputs of the reference implementations, and the way back to the file."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax import hub
from diffusion_jax.models import UNet
from tests import golden

DIFFUSERS = ("unet2d-ddpm-cifar", "unet2d-ddpm-256", "unet2d-adm")
OPENAI = ("guided-unet-adm", "guided-unet-neworder", "improved-unet")
LAYOUTS = dict.fromkeys(DIFFUSERS, "diffusers") | dict.fromkeys(OPENAI, "guided-diffusion")
LAYOUTS["ddpm-original"] = "ddpm"  # made by the Model of pesser/pytorch_diffusion and the fill rule


def write(name: str, directory: Path, tensors: dict[str, np.ndarray] | None = None, **settings) -> Path:
    """A model folder as the reference writes it."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(golden.config(name) | settings))
    weights = golden.fill_tensors(name) if tensors is None else tensors
    save_file(weights, directory / "diffusion_pytorch_model.safetensors")
    return directory


def run(model, params, name: str) -> tuple[np.ndarray, np.ndarray]:
    recorded = golden.load(name)
    sample = recorded["sample"] if "sample" in recorded else recorded["x"]
    labels = recorded["class_labels"] if "class_labels" in recorded else recorded.get("y")
    apply = jax.jit(lambda p, x, t, c: model.apply({"params": p}, sample=x, timestep=t, class_labels=c))
    return np.asarray(apply(params, sample, recorded["timesteps"], labels)), recorded["out"]


def assert_same_tree(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("name", LAYOUTS)
def test_output_is_the_references(name, tmp_path):
    out, expected = run(*hub.load(write(name, tmp_path)), name)
    assert np.linalg.norm(out - expected) / np.linalg.norm(expected) < 5e-6
    np.testing.assert_allclose(out, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", LAYOUTS)
def test_round_trip_is_bit_identical(name, tmp_path):
    model, params = hub.load(write(name, tmp_path / "there"))
    hub.save(model, params, tmp_path / "back", format=LAYOUTS[name])
    again, loaded = hub.load(tmp_path / "back")
    assert again == model
    assert_same_tree(loaded, params)
    if name != "guided-unet-neworder":  # written in the legacy order
        (file,) = (tmp_path / "back").glob("*.safetensors")
        original, written = golden.fill_tensors(name), load_file(file)
        assert written.keys() == original.keys()
        for tensor, value in original.items():
            np.testing.assert_array_equal(written[tensor], value, err_msg=tensor)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_saved_config_keeps_every_setting(name, tmp_path):
    hub.save(*hub.load(write(name, tmp_path / "there")), tmp_path / "back")
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    for field, value in golden.config(name).items():
        if field == "_diffusers_version" or (field == "attn_norm_num_groups" and name != "unet2d-adm"):
            continue  # stating the groups of the middle attention changes nothing without scale-shift
        assert written[field] == value, field


def test_attention_orders_differ(tmp_path):
    # the same file under the other order is another network (two heads here): the setting must be read
    model, params = hub.load(write("guided-unet-adm", tmp_path, use_new_attention_order=True))
    out, expected = run(model, params, "guided-unet-adm")
    assert np.abs(out - expected).max() > 1e-2


def test_a_trained_network_can_be_opened_by_both_libraries(tmp_path):
    """A network built from a config (image_size None, null class) goes out in both layouts and comes back."""
    model = UNet(
        channels=32,
        channel_mults=(1, 2),
        num_res_blocks=1,
        attention_resolutions=(4,),
        num_classes=10,
        norm_eps=1e-5,
        flip_sin_to_cos=True,
        freq_shift=0,
        downsample_padding=1,
    )
    sample, time = jax.random.normal(jax.random.key(1), (2, 8, 8, 3)), jnp.array([3, 500])
    labels = jnp.array([2, 10])  # 10 is the null class
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), sample, time, labels))["params"]
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape).astype(np.float32), shapes)
    expected = jax.jit(model.apply)({"params": params}, sample, time, labels)
    for layout in ("diffusers", "guided-diffusion"):
        hub.save(model, params, tmp_path / layout, format=layout)
        loaded, loaded_params = hub.load(tmp_path / layout)
        assert_same_tree(loaded_params, params)
        out = jax.jit(loaded.apply)({"params": loaded_params}, sample, time, labels)
        np.testing.assert_array_equal(out, expected)


def test_the_scale_of_time_goes_with_the_network(tmp_path):
    fields = {"norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1}
    model = UNet(
        channels=32, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(4,), time_scale=0.25, **fields
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), _shapes(model))
    hub.save(model, params, tmp_path, format="guided-diffusion")
    assert hub.load(tmp_path)[0].time_scale == 0.25


def test_image_size_of_the_file_does_not_bind_the_images(tmp_path):
    # attention stays at its level when the same network is applied to smaller images, or states no size
    stated = hub.load(write("unet2d-ddpm-cifar", tmp_path / "stated"))
    silent = hub.load(write("unet2d-ddpm-cifar", tmp_path / "silent", sample_size=None))
    assert_same_tree(stated[1], silent[1])
    sample = jax.random.normal(jax.random.key(0), (1, 16, 24, 3))
    outs = [jax.jit(model.apply)({"params": params}, sample=sample, timestep=5) for model, params in (stated, silent)]
    np.testing.assert_array_equal(*outs)


def test_shards(tmp_path):
    tensors = golden.fill_tensors("improved-unet")
    names = sorted(tensors)
    parts = {"a-00001-of-00002.safetensors": names[::2], "a-00002-of-00002.safetensors": names[1::2]}
    (tmp_path / "config.json").write_text(json.dumps(golden.config("improved-unet")))
    for file, part in parts.items():
        save_file({name: tensors[name] for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_same_tree(hub.load(tmp_path)[1], hub.load(write("improved-unet", tmp_path / "single"))[1])
    (tmp_path / "a-00002-of-00002.safetensors").unlink()
    with pytest.raises(hub.CheckpointError, match=r"names a-00002-of-00002.*; 1 of 2 are not there"):
        hub.load(tmp_path)


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_files_become_float32(dtype, tmp_path):
    tensors = {name: value.astype(dtype) for name, value in golden.fill_tensors("improved-unet").items()}
    _, params = hub.load(write("improved-unet", tmp_path, tensors))
    kernel = params["conv_in"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), tensors["input_blocks.0.0.weight"].astype(np.float32))


def test_attention_names_of_old_files(tmp_path):
    # google/ddpm-cifar10-32 was written before diffusers renamed these layers
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, value in golden.fill_tensors("unet2d-ddpm-cifar").items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        tensors[name] = value
    assert "mid_block.attentions.0.proj_attn.weight" in tensors
    _, params = hub.load(write("unet2d-ddpm-cifar", tmp_path / "old", tensors))
    assert_same_tree(params, hub.load(write("unet2d-ddpm-cifar", tmp_path / "new"))[1])


def test_tensors_that_do_not_fit_are_all_named(tmp_path):
    tensors = golden.fill_tensors("unet2d-ddpm-cifar")
    del tensors["conv_in.bias"], tensors["mid_block.resnets.1.conv2.weight"]
    tensors |= {"ema.decay": np.ones(1, np.float32), "conv_out.weight": np.zeros((3, 32, 3, 1), np.float32)}
    with pytest.raises(hub.CheckpointError) as refused:
        hub.load(write("unet2d-ddpm-cifar", tmp_path, tensors))
    assert str(refused.value) == (
        f"{tmp_path}: the tensors do not fit config.json; 2 missing: conv_in.bias, mid_block.resnets.1.conv2.weight;"
        " 1 left over: ema.decay; 1 of the wrong shape: conv_out.weight is [3, 32, 3, 1], not [3, 32, 3, 3]"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"act_fn": "tanh"}, "act_fn='tanh' is not covered; it could be 'silu' or 'gelu'"),
        ({"down_block_types": ["SkipDownBlock2D"] * 4}, "'SkipDownBlock2D' is not covered; it could be DownBlock2D"),
        ({"up_block_types": ["UpBlock2D"] * 4}, "up_block_types=.* attention at the levels of down_block_types"),
        ({"time_embedding_type": "learned"}, "time_embedding_type='learned'"),
        ({"block_out_channels": [32, 64]}, "2 blocks, as in block_out_channels"),
        ({"norm_num_groups": 24}, "norm_groups=24 does not divide"),
        ({"_class_name": "UNet3DModel"}, "describes UNet3DModel; covered are"),
    ],
)
def test_settings_that_are_not_covered_are_refused(settings, message, tmp_path):
    with pytest.raises(hub.CheckpointError, match=message) as refused:
        hub.load(write("unet2d-ddpm-cifar", tmp_path, **settings))
    assert "config.json" in str(refused.value)


def test_layouts_refuse_what_they_cannot_express(tmp_path):
    heads = UNet(channels=32, channel_mults=(1, 2), attention_resolutions=(8, 4), num_heads=4)
    with pytest.raises(hub.CheckpointError, match=r"num_heads=4 .* one head width; format='guided-diffusion'"):
        hub.save(heads, _shapes(heads), tmp_path)
    with pytest.raises(hub.CheckpointError, match="norm_eps=1e-06: guided-diffusion's UNetModel has 1e-05"):
        hub.save(heads, _shapes(heads), tmp_path, format="guided-diffusion")
    scaled = heads.clone(num_heads=1, time_scale=0.25)
    with pytest.raises(hub.CheckpointError, match=r"time_scale=0\.25: .* format='guided-diffusion' can hold"):
        hub.save(scaled, _shapes(scaled), tmp_path)
    with pytest.raises(
        hub.CheckpointError, match="'keras': UNet can be saved as 'diffusers' or 'guided-diffusion' or 'ddpm'"
    ):
        hub.save(heads, _shapes(heads), tmp_path, format="keras")


def _shapes(model: UNet):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), 0))["params"]


def test_folders_that_are_no_checkpoints(tmp_path):
    with pytest.raises(hub.CheckpointError, match="no such folder"):
        hub.load(tmp_path / "nothing")
    with pytest.raises(hub.CheckpointError, match=r"config\.json: no such file"):
        hub.load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(hub.CheckpointError, match=r"config\.json: cannot be read as JSON"):
        hub.load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(golden.config("improved-unet")))
    with pytest.raises(hub.CheckpointError, match=r"no model\.safetensors \(files of weights there: none\)"):
        hub.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(hub.CheckpointError, match=r"model\.safetensors: is no readable \.safetensors file"):
        hub.load(tmp_path)
