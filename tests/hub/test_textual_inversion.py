"""Words taught by textual inversion: the four kinds of files, and that prompts use them."""

import dataclasses
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax import hub, readers
from diffusion_jax.hub.textual_inversion import add_embedding
from diffusion_jax.pipelines.text import TextEncoder
from tests.hub import pipeline_folders


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return hub.load_pipeline(pipeline_folders.write("pipeline-sd15", tmp_path_factory.mktemp("words") / "sd"))


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)


@pytest.mark.parametrize(
    ("key", "word", "called"),
    [
        ("<toy>", None, "<toy>"),
        ("emb_params", None, "file"),
        ("*", None, "file"),
        ("emb_params", "new-one", "NEW-one"),
        ("clip_l", "<toy>", "<toy>"),
    ],
)
def test_a_word_is_its_own_tokens(key, word, called, pipe, table, tmp_path):
    save_file({key: table}, tmp_path / "file.safetensors")
    taught = add_embedding(pipe, tmp_path / "file.safetensors", word)
    encoder = taught.encoders[0]
    tokens = encoder.tokenizer([f"a {called} cat"])
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


def test_a_file_of_several_words_adds_all(pipe, table, tmp_path):
    """Each word's tokens are its own rows of the table, in any order."""
    single = np.random.default_rng(1).standard_normal(32).astype(np.float32)
    save_file({"<first>": table, "<second>": single}, tmp_path / "two.safetensors")
    taught = add_embedding(pipe, tmp_path / "two.safetensors")
    encoder, params = taught.encoders[0], taught.params["text_encoder"]
    ids = encoder.tokenizer(["a <second> <FIRST> cat"]).ids
    assert set(encoder.tokenizer.added) == {"<first>", "<second>"}
    rows = np.asarray(params["token_embedding"]["embedding"])
    assert len(rows) == encoder.model.vocab_size == 99 + 3
    np.testing.assert_array_equal(rows[ids[0, 2:5]], [single, *table])
    states = encoder.model.apply({"params": params}, ids).hidden_states[0]
    positions = pipe.params["text_encoder"]["position_embedding"]["embedding"]
    np.testing.assert_allclose(states[0, 2:5], np.stack([single, *table]) + positions[2:5], rtol=1e-5, atol=1e-6)
    with pytest.raises(hub.CheckpointError, match="holds 2 words, '<first>', '<second>', which keep") as refused:
        add_embedding(pipe, tmp_path / "two.safetensors", "<mine>")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["toy-style", "*", None])
@pytest.mark.parametrize("wrapped", [True, False])
def test_pickles_of_the_web_interfaces_state_their_word(name, wrapped, pipe, table, tmp_path, monkeypatch):
    """Files from before 2023 keep PyTorch's ParameterDict."""
    inside = {"*": table}
    inside = {"__class__": "torch.nn.modules.container.ParameterDict", "_parameters": inside} if wrapped else inside
    tree = {"string_to_token": {"*": 265}, "string_to_param": inside, "name": name, "step": 500}
    monkeypatch.setattr(readers, "read_tree", lambda path: tree)
    taught = add_embedding(pipe, tmp_path / "by-file.pt")
    word = "toy-style" if name == "toy-style" else "by-file"
    assert taught.encoders[0].tokenizer.added == {word: (99, 100)}
    np.testing.assert_array_equal(taught.params["text_encoder"]["token_embedding"]["embedding"][99:], table)


def test_vectors_of_known_tokens_read_as_those_tokens(pipe, tmp_path):
    encoder, params = pipe.encoders[0], pipe.params["text_encoder"]
    ids = encoder.tokenizer(["a cat"]).ids[0, 1:3]
    save_file({"<copy>": np.asarray(params["token_embedding"]["embedding"])[ids]}, tmp_path / "copy.safetensors")
    taught = add_embedding(pipe, tmp_path / "copy.safetensors")

    def features(one, prompt):
        return one.encoders[0].model.apply(
            {"params": one.params["text_encoder"]}, one.encoders[0].tokenizer([prompt]).ids
        )

    copied, plain = features(taught, "dog <copy>"), features(pipe, "dog a cat")
    np.testing.assert_allclose(copied.last_hidden_state, plain.last_hidden_state, rtol=0, atol=1e-5)
    np.testing.assert_allclose(copied.pooled, plain.pooled, rtol=0, atol=1e-5)


def test_old_configs_read_the_pooled_vector_at_the_end_and_not_at_the_new_word(pipe, table, tmp_path):
    """Their end token, 2, means the largest number in the text: SDXL's second encoder has such a config."""
    save_file({"<toy>": table}, tmp_path / "toy.safetensors")
    encoder = pipe.encoders[0]
    old = dataclasses.replace(encoder, model=encoder.model.clone(end_token=2))
    taught = add_embedding(dataclasses.replace(pipe, encoders=(old,)), tmp_path / "toy.safetensors")
    model, params = taught.encoders[0].model, taught.params["text_encoder"]
    ids = taught.encoders[0].tokenizer(["<toy> cat"]).ids
    features = model.apply({"params": params}, ids)
    end = int(np.argmax(ids[0] == encoder.tokenizer.end))
    np.testing.assert_array_equal(features.pooled[0], features.last_hidden_state[0, end])


def test_sdxl_has_vectors_for_both_encoders(pipe, table, tmp_path):
    first, second = pipe.encoders[0], np.ones((1, 40), np.float32)
    wide = TextEncoder("text_encoder_2", first.model.clone(width=40), first.tokenizer)
    params = {**pipe.params, "text_encoder_2": {"token_embedding": {"embedding": np.zeros((99, 40), np.float32)}}}
    both = dataclasses.replace(pipe, encoders=(first, wide), params=params)
    save_file({"clip_g": second, "clip_l": table}, tmp_path / "xl.safetensors")
    taught = add_embedding(both, tmp_path / "xl.safetensors", "<xl>")
    for encoder, rows in zip(taught.encoders, (table, second), strict=True):
        longer = taught.params[encoder.name]["token_embedding"]["embedding"]
        np.testing.assert_array_equal(longer[99:], rows)
        assert encoder.model.vocab_size == 99 + len(rows) == len(longer)
    save_file({"<toy>": table}, tmp_path / "one.safetensors")
    with pytest.raises(hub.CheckpointError, match=r"widths \[32\]; the CLIPs of this pipeline take \[32, 40\]"):
        add_embedding(both, tmp_path / "one.safetensors")


def test_a_word_is_added_once(pipe, table, tmp_path):
    save_file({"<toy>": table}, tmp_path / "toy.safetensors")
    taught = add_embedding(pipe, tmp_path / "toy.safetensors")
    with pytest.raises(hub.CheckpointError, match="'<Toy>' is in the vocabulary already"):
        add_embedding(taught, tmp_path / "toy.safetensors", "<Toy>")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"<toy>": np.zeros((1, 16), np.float32)}, r"widths \[16\]; the CLIPs of this pipeline take \[32\]"),
        (
            {"clip_l": np.zeros((1, 32), np.float32), "clip_g": np.zeros((1, 48), np.float32)},
            r"widths \[32, 48\]; the CLIPs of this pipeline take \[32\]",
        ),
        ({"<a>": np.zeros(32, np.float32), "<b>": np.zeros(3, np.float32)}, r"vectors of '<b>' of widths \[3\]"),
        ({"<a>": np.zeros(32, np.float32), "<b>": np.zeros((1, 1, 32), np.float32)}, "holds no embedding"),
        ({"<a>": np.zeros(32, np.float32), "(b)": np.zeros(32, np.float32)}, r"spell the word '\(b\)'"),
        ({"<a>": np.zeros(32, np.float32), "<A>": np.zeros(32, np.float32)}, "'<[aA]>' is in the vocabulary already"),
        ({"<toy>": np.zeros((1, 1, 32), np.float32)}, "holds no embedding"),
        ({"<toy>": np.zeros((1, 32), np.int32)}, "holds no embedding"),
        ({"a": np.zeros(32, np.float32)}, "the word 'a' is in the vocabulary already; name another one"),
        ({"(toy)": np.zeros(32, np.float32)}, r"prompts cannot spell the word '\(toy\)'"),
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
