"""Settings that cannot be are refused in a line, at once, before anything of their size is made."""

import json
import time

import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.hub.plausible import check_counts, check_settings
from tests import golden
from tests.hub.folders import write

NETWORKS = (
    "unet2d-adm", "unet-sd15", "controlnet-sd15/controlnet", "vae-kl", "vae-tiny", "mmdit-sd3", "flux-tiny", "dit",
    "dit-original", "guided-unet-adm", "ddpm-original", "edm-ddpmpp-vp", "text-clip-quickgelu", "text-t5",
    "text-bert-tiny",
)  # fmt: skip
HUGE = (10**9, 10**6, 2**63, 1e308, -1, 0, float("nan"), float("inf"), "x" * 100_000, [], {}, [[[[1]]]], True, None)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_value_of_any_setting_ends_in_a_traceback(name, tmp_path):
    """Every setting, one after the other, with what a hostile file may hold: an answer in a line, or a network."""
    config = golden.config(name)
    write(name, tmp_path)
    rng = np.random.default_rng(len(name))
    began = time.monotonic()
    tried = 0
    for field in rng.permutation([field for field in config if not field.startswith("_")]).tolist():
        value = HUGE[rng.integers(len(HUGE))]
        changed = config | {field: [value] * len(config[field]) if isinstance(config[field], list) else value}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        try:
            hub.load(tmp_path)
        except hub.CheckpointError as error:
            assert "\n" not in str(error) and len(str(error)) <= 300 + len(str(tmp_path)), field
        tried += 1
        if time.monotonic() - began > 0.8:  # loading again and again is what takes the time
            break
    assert tried


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "unet-sd15",
            {"layers_per_block": 1_000_000},
            r"layers_per_block=1000000: the names of the weights count no m",
        ),
        ("unet-sd15", {"transformer_layers_per_block": [1, 500]}, "transformer_layers_per_block=500: the names of"),
        ("unet-sd15", {"sample_size": 10**9}, "sample_size=1000000000: integers go up to 1048576"),
        ("unet-sd15", {"block_out_channels": [2**63, 1]}, "block_out_channels=9223372036854775808: integers go up to"),
        ("unet-sd15", {"block_out_channels": [32] * 65}, "block_out_channels: a list of 65; 64 is the most"),
        ("unet-sd15", {"block_out_channels": [32.5, 64]}, "block_out_channels: got 32.5; it must be a whole number"),
        ("unet-sd15", {"norm_eps": float("nan")}, "norm_eps=nan: it must be a finite number"),
        ("unet-sd15", {"act_fn": 5}, "act_fn: got 5; it must be a text"),
        ("unet-sd15", {"upcast_attention": 1}, "upcast_attention: got 1; it must be true or false"),
        ("unet-sd15", {"cross_attention_dim": {"a": 1}}, r"cross_attention_dim: got \{'a': 1\}; it must be a number"),
        ("vae-tiny", {"encoder_block_out_channels": 1e308}, r"encoder_block_out_channels=1e\+308: it must be a list"),
        ("vae-tiny", {"num_decoder_blocks": [10**6, 1]}, "num_decoder_blocks=1000000: the names of the weights"),
        ("vae-kl", {"act_fn": "x" * 10**6}, r"AutoencoderKL with act_fn='x+\.\.\.$"),
        ("mmdit-sd3", {"num_layers": 10**6}, "num_layers=1000000: the names of the weights"),
        ("text-t5", {"vocab_size": 2**63}, "vocab_size=9223372036854775808: integers go up to"),
        ("text-clip-quickgelu", {"num_hidden_layers": 10**6}, "num_hidden_layers=1000000: the names of the weights"),
        ("text-t5", {"model_type": []}, r"model_type: got \[\]; it must be a text"),
        ("text-bert-tiny", {"architectures": 5}, "architectures: got 5; it must be a text"),
        ("guided-unet-adm", {"num_res_blocks": 10**6}, "num_res_blocks=1000000: the names of the weights"),
        ("dit-original", {"depth": 10**6}, "depth=1000000: the names of the weights"),
    ],
)
def test_values_out_of_proportion_are_refused_by_name(name, settings, message, tmp_path):
    with pytest.raises(hub.CheckpointError, match=rf"config\.json: {message}") as caught:
        hub.load(write(name, tmp_path, **settings))
    assert len(str(caught.value)) <= 300 + len(str(tmp_path))


def test_a_few_blocks_too_many_are_still_counted_tensor_by_tensor(tmp_path):
    with pytest.raises(hub.CheckpointError, match=r"missing: transformer_blocks"):
        hub.load(write("mmdit-sd3", tmp_path, num_layers=golden.config("mmdit-sd3")["num_layers"] + 2))


def test_published_settings_pass():
    check_counts({"num_layers": 38}, [f"transformer_blocks.{i}.attn.to_q.weight" for i in range(38)])
    check_settings({"sample_size": [64, 128], "mid_block_type": None}, {"sample_size": 32, "mid_block_type": "A"})
    check_settings({"dual_attention_layers": list(range(38))}, {"dual_attention_layers": []})
    check_settings({"scaling_factor": 1, "freq_shift": 1.0}, {"scaling_factor": 0.18215, "freq_shift": 0})
