"""Tokenisers from a vocabulary that the test writes."""

import json
import sys

import numpy as np
import pytest

from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.hub.tokenizer import load_tokenizer
from tests import golden

LETTERS = "abcdefghijklmnopqrstuvwxyz,!12"
MERGES = ["c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>"]
START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """CLIP's files: single characters, characters at the end of a word, merges, two special tokens."""
    directory = tmp_path_factory.mktemp("tokenizer")
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *(merge.replace(" ", "") for merge in MERGES)]
    vocabulary = {word: number for number, word in enumerate([*words, START, END])}
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 12}))
    special = {"bos_token": START, "eos_token": {"content": END}, "unk_token": END, "pad_token": "!"}
    (directory / "special_tokens_map.json").write_text(json.dumps(special))
    return directory


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder)


def words_of(folder, numbers):
    names = {number: word for word, number in json.loads((folder / "vocab.json").read_text()).items()}
    return [names[number] for number in numbers]


def test_byte_pairs_end_words_and_padding(folder, tokenizer):
    tokens = tokenizer(["A  red\tCAT, dogs 12"])
    expected = [START, "a</w>", "red</w>", "cat</w>", ",</w>", "do", "g", "s</w>", "1</w>", "2</w>", END, "!"]
    assert words_of(folder, tokens.ids[0]) == expected
    np.testing.assert_array_equal(tokens.mask[0], [1] * 11 + [0])
    assert tokens.ids.dtype == np.int32 and tokens.ids.shape == (1, 12)


def test_numbers_are_those_of_transformers():
    """Those of transformers 4.57's CLIPTokenizerFast for the same files: the bytes and 229 of CLIP's merges."""
    tokenizer = load_tokenizer(golden.GOLDENS / "text-clip-tokenizer")
    recorded = golden.config("text-clip-tokenizer", "tokens.json")
    assert len(recorded) > 20 and tokenizer.length == 77
    for prompt, numbers in recorded.items():
        tokens = tokenizer([prompt], weighted=False, length=100)
        assert tokens.ids[0, tokens.mask[0] > 0].tolist() == numbers, prompt
        assert (tokens.ids[0, len(numbers) :] == numbers[-1]).all()


def test_a_long_prompt_names_what_is_cut(folder, tokenizer):
    with pytest.warns(UserWarning, match=r"has 12 tokens, 10 are read; cut off: 'dog red'") as caught:
        tokens = tokenizer(["cat " * 10 + "dog (red:1.3)"])
    assert len(caught) == 1
    assert words_of(folder, tokens.ids[0]) == [START, *["cat</w>"] * 10, END]
    np.testing.assert_array_equal(tokens.weights, np.ones((1, 12), np.float32))


def test_a_prompt_that_fits_gives_no_warning(tokenizer, recwarn):
    tokenizer(["cat " * 10])
    assert not recwarn.list


def test_weights_stand_at_their_tokens(tokenizer):
    tokens = tokenizer(["a (red:1.5) cat", r"a \(red\) [cat]"])
    np.testing.assert_allclose(tokens.weights[0, :5], [1, 1, 1.5, 1, 1])
    np.testing.assert_allclose(tokens.weights[1, :4], [1, 1, 1, 1])
    assert tokens.weights[1].min() == pytest.approx(1 / 1.1)
    plain = tokenizer(["(a:1.5)"], weighted=False)
    assert plain.mask.sum() > tokenizer(["(a:1.5)"]).mask.sum() and (plain.weights == 1).all()


def test_places_of_words(tokenizer):
    assert tokenizer.places("a red cat and dogs", ["cat", "dogs"]) == {"cat": [3], "dogs": [7, 8, 9]}
    with pytest.raises(ValueError, match="has no word 'horse'"):
        tokenizer.places("a cat", ["horse"])


def test_added_words_are_tokens_of_their_own(tokenizer):
    more = tokenizer.extended({"<toy>": [500, 501]})
    assert list(more(["a <toy> cat"]).ids[0, 1:5])[1:3] == [500, 501]
    assert 500 not in tokenizer(["a <toy> cat"]).ids


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_missing_files_are_refused(missing, folder, tmp_path):
    for file in folder.iterdir():
        if file.name != missing:
            (tmp_path / file.name).write_text(file.read_text())
    with pytest.raises(CheckpointError, match=r"no tokeniser files; it must hold tokenizer\.json, vocab\.json with"):
        load_tokenizer(tmp_path)


def test_a_broken_file_is_one_line(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="is no readable tokeniser") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_without_the_library_the_error_names_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(CheckpointError, match="the package tokenizers must be installed"):
        load_tokenizer(folder)


def test_t5_has_an_end_and_no_start(tmp_path):
    import tokenizers

    library = tokenizers.Tokenizer(
        tokenizers.models.Unigram(
            [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁cat", -1.0), ("▁", -2.0), ("a", -2.5)], unk_id=2
        )
    )
    library.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    library.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    library.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "pad_token": "<pad>", "model_max_length": 6})
    )
    tokens = load_tokenizer(tmp_path)(["cat a"])
    assert list(tokens.ids[0]) == [3, 4, 5, 1, 0, 0]
    assert list(tokens.mask[0]) == [1, 1, 1, 1, 0, 0]


def test_vocabulary_and_merges_read_as_the_file_of_transformers(tmp_path):
    """The golden's tokenizer.json was written by transformers; its vocabulary in CLIP's own files gives its numbers."""
    there = golden.GOLDENS / "pipeline-sd15" / "tokenizer"
    model = json.loads((there / "tokenizer.json").read_text())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text((there / "tokenizer_config.json").read_text())
    prompts = [
        "A red  cat's  DOG, 42!",
        "the dog. 42 cats!",
        "don't  stop\n- it",
        "",
        "naïve çédille 猫 ½",
        "<|endoftext|> a",
    ]
    one, other = (load_tokenizer(folder)(prompts) for folder in (there, tmp_path))
    np.testing.assert_array_equal(one.ids, other.ids)
