"""Textual inversion: every layout of the files gives the word its vectors, and nothing else changes."""

import dataclasses
import io
import pickle

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax import hub, readers
from diffusion_jax.hub.textual_inversion import add_embeddings, read_embedding
from diffusion_jax.pipelines import text
from tests.hub import pipeline_folders

WIDTH, WORDS = 32, 99  # of the golden's text encoder
VECTORS = np.random.default_rng(0).standard_normal((2, WIDTH)).astype(np.float32)


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    return hub.load_pipeline(pipeline_folders.write("pipeline-sd15", tmp_path_factory.mktemp("sd") / "checkpoint"))


def numbers(pipe, prompt: str) -> np.ndarray:
    return pipe.encoders[0].tokenizer([prompt]).ids[0]


def conditions(pipe, prompt: str) -> np.ndarray:
    encoded = text.tokenize(pipe.encoders, [prompt])
    program = jax.jit(lambda params: text.encode(pipe.encoders, pipe.options, params, encoded, 0))
    return np.asarray(program({"text_encoder": pipe.params["text_encoder"]})["encoder_hidden_states"])


def test_every_layout_is_read(tmp_path):
    save_file({"<toy>": VECTORS}, tmp_path / "diffusers.safetensors")
    save_file({"emb_params": VECTORS}, tmp_path / "web-toy.safetensors")
    save_file({"clip_l": VECTORS}, tmp_path / "several.safetensors")
    for stem, word in (("diffusers", "<toy>"), ("web-toy", "web-toy"), ("several", "several")):
        found, vectors = read_embedding(tmp_path / f"{stem}.safetensors")
        assert found == word
        np.testing.assert_array_equal(vectors[0], VECTORS)
        assert read_embedding(tmp_path / f"{stem}.safetensors", "mine")[0] == "mine"


@pytest.mark.parametrize("name", ["toy-style", None, "*"])
def test_pickles_of_the_web_uis_name_their_word(name, tmp_path, monkeypatch):
    tree = {"string_to_token": {"*": 265}, "string_to_param": {"*": VECTORS}, "name": name, "step": 100}
    monkeypatch.setattr(readers, "read_tree", lambda path: tree)
    word, vectors = read_embedding(tmp_path / "file-name.pt")
    assert word == ("toy-style" if name == "toy-style" else "file-name")
    np.testing.assert_array_equal(vectors[0], VECTORS)
    tree["string_to_param"] = {"__class__": "torch.nn.ParameterDict", "_parameters": {"*": VECTORS}}
    np.testing.assert_array_equal(read_embedding(tmp_path / "file-name.pt")[1][0], VECTORS)


def test_a_real_pickle_is_read_without_running_it(tmp_path):
    buffer = io.BytesIO()
    pickle.dump({"string_to_param": {"*": VECTORS}, "name": "pickled"}, buffer)
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    word, vectors = read_embedding(tmp_path / "x.pt")
    assert word == "pickled"
    np.testing.assert_array_equal(vectors[0], VECTORS)


def test_the_word_has_its_vectors_and_the_rest_is_as_before(pipe, tmp_path):
    save_file({"<toy>": VECTORS}, tmp_path / "toy.safetensors")
    more = add_embeddings(pipe, [(tmp_path / "toy.safetensors", None)])
    plain, learned = numbers(pipe, "a cat"), numbers(more, "a <TOY> cat")
    np.testing.assert_array_equal(learned[:6], [*plain[:2], WORDS, WORDS + 1, *plain[2:4]])
    table = more.params["text_encoder"]["token_embedding"]["embedding"]
    np.testing.assert_array_equal(table[WORDS:], VECTORS)
    np.testing.assert_array_equal(conditions(more, "a cat"), conditions(pipe, "a cat"))
    assert np.abs(conditions(more, "a <toy> cat") - conditions(more, "a <other> cat")).max() > 1e-3
    assert pipe.params["text_encoder"]["token_embedding"]["embedding"].shape[0] == WORDS


def test_vectors_of_known_words_mean_those_words(pipe, tmp_path):
    """A word with the vectors of the tokens of "a cat" reads as they do."""
    ids = numbers(pipe, "a cat")[1:3]
    table = np.asarray(pipe.params["text_encoder"]["token_embedding"]["embedding"])
    save_file({"<copy>": table[ids]}, tmp_path / "copy.safetensors")
    more = add_embeddings(pipe, [(tmp_path / "copy.safetensors", None)])
    np.testing.assert_allclose(conditions(more, "the <copy> dog"), conditions(pipe, "the a cat dog"), rtol=0, atol=1e-6)


def test_old_configs_read_the_pooled_vector_at_the_end_and_not_at_the_new_word(pipe, tmp_path):
    """They say end token 2 and mean the largest number, which the new words would be."""
    encoder = pipe.encoders[0]
    old = dataclasses.replace(pipe, encoders=(dataclasses.replace(encoder, model=encoder.model.clone(end_token=2)),))
    save_file({"<toy>": VECTORS}, tmp_path / "toy.safetensors")
    for start in (pipe, old):
        more = add_embeddings(start, [(tmp_path / "toy.safetensors", None)]).encoders[0]
        assert more.model.end_token == WORDS - 1


def test_sdxl_has_vectors_for_both_encoders(pipe, tmp_path):
    first = pipe.encoders[0]
    wide = first.model.clone(width=40)
    both = dataclasses.replace(
        pipe,
        encoders=(first, text.TextEncoder("text_encoder_2", wide, first.tokenizer)),
        params={**pipe.params, "text_encoder_2": {"token_embedding": {"embedding": np.zeros((WORDS, 40), np.float32)}}},
    )
    other = np.ones((1, 40), np.float32)
    save_file({"clip_g": other, "clip_l": VECTORS}, tmp_path / "xl.safetensors")
    more = add_embeddings(both, [(tmp_path / "xl.safetensors", "<xl>")])
    np.testing.assert_array_equal(more.params["text_encoder"]["token_embedding"]["embedding"][WORDS:], VECTORS)
    np.testing.assert_array_equal(more.params["text_encoder_2"]["token_embedding"]["embedding"][WORDS:], other)
    assert [encoder.model.vocab_size for encoder in more.encoders] == [WORDS + 2, WORDS + 1]
    save_file({"<toy>": VECTORS}, tmp_path / "one.safetensors")
    with pytest.raises(hub.CheckpointError, match=r"widths \[32\]; the text encoders of this pipeline have \[32, 40\]"):
        add_embeddings(both, [(tmp_path / "one.safetensors", None)])


@pytest.mark.parametrize(
    ("tensors", "word", "message"),
    [
        ({"<toy>": np.ones((1, 31), np.float32)}, None, r"widths \[31\]; .* have \[32\]"),
        ({"<toy>": VECTORS, "<two>": VECTORS}, None, "holds <toy>, <two>, not the vectors of one word"),
        ({"<toy>": np.ones((1, 1, 32), np.float32)}, None, "holds no vectors"),
        ({"<toy>": np.ones((1, 32), np.int32)}, None, "holds no vectors"),
        ({"<toy>": VECTORS}, "a", "the word 'a' is in the vocabulary already"),
    ],
)
def test_files_that_do_not_fit_are_refused(tensors, word, message, pipe, tmp_path):
    save_file(tensors, tmp_path / "bad.safetensors")
    with pytest.raises(hub.CheckpointError, match=message) as caught:
        add_embeddings(pipe, [(tmp_path / "bad.safetensors", word)])
    assert "\n" not in str(caught.value)


def test_a_word_is_added_once_and_a_missing_file_is_named(pipe, tmp_path):
    save_file({"<toy>": VECTORS}, tmp_path / "toy.safetensors")
    twice = [(tmp_path / "toy.safetensors", None), (tmp_path / "toy.safetensors", "<Toy>")]
    with pytest.raises(hub.CheckpointError, match="'<Toy>' is in the vocabulary already"):
        add_embeddings(pipe, twice)
    with pytest.raises(hub.CheckpointError, match=r"nothing\.pt: no such file"):
        add_embeddings(pipe, [(tmp_path / "nothing.pt", None)])
