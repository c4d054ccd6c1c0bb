"""Tokenisers from a checkpoint's own files, by the library `tokenizers`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_jax.hub import clip_vocabulary
from diffusion_jax.hub.clip_vocabulary import END, START
from diffusion_jax.hub.files import CheckpointError, read_object
from diffusion_jax.models.text.tokenizer import Tokenizer
from diffusion_jax.readers import decoding

# CLIP's words: contractions, letters, single digits, other signs (Radford et al. 2021, released code)
CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)  # fmt: skip
LONGEST = 77


def load_tokenizer(directory: str | Path) -> Tokenizer:
    """The tokeniser of a checkpoint: tokenizer.json, or vocab.json with merges.txt (CLIP), or vocab.txt (BERT).

    Raises:
      CheckpointError: none of these files, files that cannot be read, or the library `tokenizers` is not installed.
    """
    directory = Path(directory)
    library = _library(str(directory))
    settings = _settings(directory)
    with decoding(directory, "tokeniser", CheckpointError):
        if (directory / "tokenizer.json").is_file():
            backend = library.Tokenizer.from_file(str(directory / "tokenizer.json"))
        elif (directory / "vocab.json").is_file() and (directory / "merges.txt").is_file():
            files = (str(directory / name) for name in ("vocab.json", "merges.txt"))
            vocabulary, merges = library.models.BPE.read_file(*files)
            backend = _clip(library, vocabulary, merges, settings)
        elif (directory / "vocab.txt").is_file():
            backend = _bert(library, directory, settings)
        else:
            needed = "tokenizer.json, vocab.json with merges.txt, or vocab.txt"
            if (directory / "spiece.model").is_file():
                needed = "tokenizer.json; transformers writes it from spiece.model"
            raise CheckpointError(f"{directory}: no tokeniser files; it must hold {needed}")
        backend.no_padding()
        backend.no_truncation()
        return _finish(backend, settings)


def clip_tokenizer(pad: str) -> Tokenizer:
    """The tokeniser of Stable Diffusion's encoders, of the vocabulary that ships with this package.

    Args:
      pad: what fills a text up, :data:`clip_vocabulary.OPENAI_PAD` or :data:`clip_vocabulary.OPEN_CLIP_PAD`.
    """
    settings = clip_vocabulary.settings(pad)
    backend = _clip(_library("prompts"), *clip_vocabulary.vocabulary(), settings)
    return _finish(backend, settings)


def _library(where: str) -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError:
        raise CheckpointError(f"{where}: the package tokenizers must be installed to read prompts") from None


def _settings(directory: Path) -> dict[str, Any]:
    """What the files say of special tokens and length; the newer of the two has the last word."""
    settings: dict[str, Any] = {}
    for path in (directory / "special_tokens_map.json", directory / "tokenizer_config.json"):
        if not path.is_file():
            continue
        settings |= {key: value for key, value in read_object(path).items() if value is not None}
    return settings


def _clip(library: Any, vocabulary: Any, merges: Any, settings: Mapping[str, Any]) -> Any:
    """CLIP's byte pairs; `</w>` ends a word."""
    end = _content(settings.get("unk_token"), END)
    model = library.models.BPE(
        vocabulary,
        merges,
        unk_token=end,
        end_of_word_suffix="</w>",
        continuing_subword_prefix="",
    )
    backend = library.Tokenizer(model)
    normalizers, pre = library.normalizers, library.pre_tokenizers
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(library.Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre.Sequence(
        [
            pre.Split(library.Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre.ByteLevel(add_prefix_space=False),
        ]
    )
    special = {"bos_token": START, "eos_token": END, "pad_token": END}
    # a text's own "!" is the token of the padding where that is "!", as in Stable Diffusion 2 and XL
    backend.add_special_tokens([_content(settings.get(key), usual) for key, usual in special.items()])
    return backend


def _bert(library: Any, directory: Path, settings: Mapping[str, Any]) -> Any:
    lowercase = settings.get("do_lower_case", True)
    backend = library.Tokenizer(library.models.WordPiece.from_file(str(directory / "vocab.txt"), unk_token="[UNK]"))
    backend.normalizer = library.normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    return backend


def _finish(backend: Any, settings: Mapping[str, Any]) -> Tokenizer:
    def number(key: str, *fallbacks: str) -> int | None:
        names = [_content(settings.get(key), "")] if settings.get(key) else list(fallbacks)
        return next((found for name in names if (found := backend.token_to_id(name)) is not None), None)

    # what the file's own rule puts around a text decides; T5 has an end and no start
    around = backend.encode("", add_special_tokens=True).ids
    start = number("bos_token", START, "[CLS]") if not around or len(around) > 1 else None
    end = number("eos_token", END, "[SEP]", "</s>")
    if len(around) > 1:
        start, end = around[0], around[-1]
    elif len(around) == 1:
        end = around[0]
    pad = number("pad_token", "<pad>", "[PAD]")
    if pad is None:
        pad = end if end is not None else 0
    length = settings.get("model_max_length", LONGEST)
    # transformers writes 1e30 for "no limit"
    length = int(length) if isinstance(length, int | float) and length < 100_000 else LONGEST
    return Tokenizer(backend, length, start=start, end=end, pad=pad)


def _content(token: Any, default: str) -> str:
    """A special token is a string, or an object that holds one."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else default
