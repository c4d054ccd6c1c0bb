"""Words taught by textual inversion: the four kinds of files, and that prompts use them."""

import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax import hub
from diffusion_jax.hub.textual_inversion import add_embedding
from tests.hub import pipeline_folders


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return hub.load_pipeline(pipeline_folders.write("pipeline-sd15", tmp_path_factory.mktemp("words") / "sd"))


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)


@pytest.mark.parametrize(
    ("key", "word", "called"),
    [("<toy>", None, "<toy>"), ("emb_params", None, "file"), ("emb_params", "[new]", "[new]")],
)
def test_a_word_is_its_own_tokens(key, word, called, pipe, table, tmp_path):
    save_file({key: table}, tmp_path / "file.safetensors")
    taught = add_embedding(pipe, tmp_path / "file.safetensors", word)
    encoder = taught.encoders[0]
    tokens = encoder.tokenizer([f"a {called} cat"], weighted=False)
    np.testing.assert_array_equal(tokens.ids[0, 2:4], [99, 100])
    np.testing.assert_array_equal(taught.params["text_encoder"]["token_embedding"]["embedding"][99:], table)
    states = encoder.model.apply({"params": taught.params["text_encoder"]}, tokens.ids).hidden_states[0]
    positions = pipe.params["text_encoder"]["position_embedding"]["embedding"]
    np.testing.assert_allclose(states[0, 2:4], table + positions[2:4], rtol=1e-5, atol=1e-6)
    # other prompts are what they were
    np.testing.assert_array_equal(encoder.tokenizer(["a cat"]).ids, pipe.encoders[0].tokenizer(["a cat"]).ids)


def test_one_vector_is_one_token(pipe, table, tmp_path):
    save_file({"<toy>": table[0]}, tmp_path / "one.safetensors")
    taught = add_embedding(pipe, tmp_path / "one.safetensors")
    assert taught.encoders[0].tokenizer.added == {"<toy>": (99,)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"<toy>": np.zeros((1, 16), np.float32)}, r"has shape \[1, 16\]; text_encoder takes vectors of 32"),
        ({"clip_l": np.zeros((1, 32), np.float32), "clip_g": np.zeros((1, 48), np.float32)}, "is for SDXL"),
        ({"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)}, "holds no embedding"),
    ],
)
def test_other_files_are_refused(tensors, message, pipe, tmp_path):
    save_file(tensors, tmp_path / "wrong.safetensors")
    with pytest.raises(hub.CheckpointError, match=message):
        add_embedding(pipe, tmp_path / "wrong.safetensors")


def test_a_file_that_is_none_is_refused(pipe, tmp_path):
    with zipfile.ZipFile(tmp_path / "broken.pt", "w") as archive:
        archive.writestr("data.txt", "nothing")
    with pytest.raises(hub.CheckpointError, match=r"broken\.pt"):
        add_embedding(pipe, tmp_path / "broken.pt")
