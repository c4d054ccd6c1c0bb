"""Text encoders of single-file checkpoints, under their original names."""

from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax import hub
from tests import golden
from tests.hub.folders import assert_close

PROJECTED, PLAIN = "text-clip-gelu-projection", "text-clip-quickgelu"
# transformers' names -> OpenCLIP's, in the order in which they are tried
RENAMES = (
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_projection.weight", "text_projection"),
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
)


def open_clip(prefix: str) -> dict[str, np.ndarray]:
    """The golden's weights as OpenCLIP stores them."""
    tensors: dict[str, np.ndarray] = {}
    for name, value in golden.fill_tensors(PROJECTED).items():
        for old, new in RENAMES:
            name = name.replace(old, new)
        tensors[name] = np.ascontiguousarray(value.T) if name == "text_projection" else value
    for layer in range(3):
        place = f"transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            parts = [tensors.pop(f"{place}.self_attn.{part}_proj.{kind}") for part in "qkv"]
            tensors[f"{place}.attn.in_proj_{kind}"] = np.concatenate(parts)
    return {prefix + name: value for name, value in tensors.items()} | {
        f"{prefix}logit_scale": np.full((), 4.6, np.float32)
    }


def features(model, params, name: str):
    return jax.jit(lambda p, ids: model.apply({"params": p}, ids))(params, golden.load(name)["input_ids"])


def test_second_encoder_of_sdxl(tmp_path):
    save_file(open_clip("conditioner.embedders.1.model."), tmp_path / "xl.safetensors")
    given = {"num_attention_heads": 4}
    model, params = hub.load(tmp_path / "xl.safetensors", part="text_encoder_2", config=given)
    assert (model.projection, model.activation, model.end_token) == (24, "gelu", 999)
    recorded, found = golden.load(PROJECTED), features(model, params, PROJECTED)
    assert_close(found.penultimate, recorded["penultimate"])
    assert_close(found.text_embeds, recorded["pooled"])


def test_encoder_of_stable_diffusion_2_is_read_without_its_last_layer(tmp_path, monkeypatch):
    monkeypatch.setattr("diffusion_jax.hub.open_clip.SD2_LAYERS", 2)  # as 23 are of 24
    save_file(open_clip("cond_stage_model.model."), tmp_path / "sd2.safetensors")
    model, params = hub.load(tmp_path / "sd2.safetensors", part="text_encoder", config={"num_attention_heads": 4})
    assert (model.depth, model.projection) == (2, None)
    # the last but one of the layers there, normalised like the last
    recorded = golden.load(PROJECTED)["penultimate"]
    assert_close(features(model, params, PROJECTED).hidden_states[-1], recorded)
    normalised = model.apply({"params": params}, recorded, method="normalize")
    assert_close(features(model, params, PROJECTED).last_hidden_state, normalised)


@pytest.mark.parametrize("prefix", ["cond_stage_model.transformer.", "conditioner.embedders.0.transformer."])
def test_encoder_of_stable_diffusion_1_and_first_of_sdxl(prefix, tmp_path):
    tensors = {f"{prefix}text_model.{name}": value for name, value in golden.fill_tensors(PLAIN).items()}
    tensors[f"{prefix}text_model.embeddings.position_ids"] = np.arange(77)[None]
    save_file(tensors, tmp_path / "sd1.safetensors")
    model, params = hub.load(tmp_path / "sd1.safetensors", part="text_encoder", config={"num_attention_heads": 4})
    assert_close(features(model, params, PLAIN).last_hidden_state, golden.load(PLAIN)["last_hidden_state"])


def test_files_that_do_not_fit_are_refused(tmp_path):
    path: Path = tmp_path / "xl.safetensors"
    tensors = open_clip("conditioner.embedders.1.model.")
    save_file(tensors, path)
    with pytest.raises(hub.CheckpointError, match="width 32, no multiple of 64; config must state num_attention_heads"):
        hub.load(path)
    with pytest.raises(hub.CheckpointError, match="part='unet'; this file holds 'text_encoder_2'"):
        hub.load(path, part="unet")
    del tensors["conditioner.embedders.1.model.transformer.resblocks.1.attn.in_proj_bias"]
    tensors["conditioner.embedders.1.model.extra"] = np.zeros(1, np.float32)
    save_file(tensors, path)
    missing = r"1 missing: transformer\.resblocks\.1\.attn\.in_proj_bias; 1 left over: extra"
    with pytest.raises(hub.CheckpointError, match=missing):
        hub.load(path, config={"num_attention_heads": 4})
