"""Tokenisers from a checkpoint's own files, by the library `tokenizers`."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.hub import clip_vocabulary
from diffusion_jax.hub.clip_vocabulary import END, START
from diffusion_jax.hub.files import CheckpointError, read_object
from diffusion_jax.pipelines import emphasis
from diffusion_jax.readers import decoding

# CLIP's words: contractions, letters, single digits, other signs (Radford et al. 2021, released code)
CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)  # fmt: skip
LONGEST = 77


class Tokens(NamedTuple):
    """Texts as numbers.

    Attributes:
      ids: int32 [B, N], padded and cut to one length.
      mask: int32 [B, N], 1 for the tokens that are not padding.
      weights: float32 [B, N], of each token in the prompt; 1 unless the prompt says otherwise.
    """

    ids: np.ndarray
    mask: np.ndarray
    weights: np.ndarray


class Tokenizer:
    """Turns prompts into :class:`Tokens`.

    Attributes:
      length: of every text, in tokens.
      added: words that stand for several tokens of their own (textual inversion): word -> numbers.
    """

    def __init__(
        self,
        backend: Any,
        length: int,
        *,
        start: int | None,
        end: int | None,
        pad: int,
        added: Mapping[str, Sequence[int]] | None = None,
    ):
        self._backend = backend
        self.length, self.start, self.end, self.pad = length, start, end, pad
        self.added = {word: tuple(numbers) for word, numbers in (added or {}).items()}

    def __call__(
        self, prompts: Sequence[str], *, weighted: bool = True, length: int | None = None, warn: bool = True
    ) -> Tokens:
        """Numbers, padding and weights of the prompts.

        Args:
          prompts: the texts.
          weighted: read the notation of :mod:`diffusion_jax.pipelines.emphasis`; False takes brackets as they are.
          length: tokens of every text; None takes the checkpoint's.
          warn: a UserWarning names the words that are cut off a text that is too long.
        """
        length = self.length if length is None else length
        ids = np.full((len(prompts), length), self.pad, np.int32)
        mask = np.zeros((len(prompts), length), np.int32)
        weights = np.ones((len(prompts), length), np.float32)
        for row, prompt in enumerate(prompts):
            numbers, strengths, ends = self._numbers(prompt, weighted)
            room = length - (self.start is not None) - (self.end is not None)
            if len(numbers) > room and warn:
                cut = " ".join(word for word, end in ends if end > room)
                text = f"the prompt has {len(numbers)} tokens, {room} are read; cut off: {cut!r}"
                warnings.warn(text, UserWarning, stacklevel=2)
            head = [] if self.start is None else [self.start]
            tail = [] if self.end is None else [self.end]
            whole = [*head, *numbers[:room], *tail]
            ids[row, : len(whole)] = whole
            mask[row, : len(whole)] = 1
            strong = strengths[:room]
            weights[row, len(head) : len(head) + len(strong)] = strong
        return Tokens(ids, mask, weights)

    def places(self, prompt: str, words: Sequence[str], *, weighted: bool = True) -> dict[str, list[int]]:
        """Where the tokens of each word stand in the prompt, counted with the start token.

        Raises:
          ValueError: a word that the prompt does not have.
        """
        numbers, _, _ = self._numbers(prompt, weighted)
        offset, found = int(self.start is not None), {}
        for word in words:
            wanted, _, _ = self._numbers(word, False)
            starts = [i for i in range(len(numbers)) if wanted and numbers[i : i + len(wanted)] == wanted]
            if not starts:
                raise ValueError(f"the prompt {prompt!r} has no word {word!r}")
            found[word] = [offset + start + i for start in starts for i in range(len(wanted))]
        return found

    def count(self, text: str) -> int:
        """Tokens of a text as it is, without start and end."""
        return len(self._numbers(text, False)[0])

    def extended(self, words: Mapping[str, Sequence[int]]) -> Tokenizer:
        """The same tokeniser with new words, each of its own tokens."""
        added = {**self.added, **{word: tuple(numbers) for word, numbers in words.items()}}
        return Tokenizer(self._backend, self.length, start=self.start, end=self.end, pad=self.pad, added=added)

    def _numbers(self, prompt: str, weighted: bool) -> tuple[list[int], list[float], list[tuple[str, int]]]:
        """Numbers and weights without start and end, and each word with the count of tokens up to its end."""
        numbers: list[int] = []
        strengths: list[float] = []
        ends: list[tuple[str, int]] = []
        for text, strength in emphasis.parse(prompt) if weighted else [(prompt, 1.0)]:
            for part, own in self._split(text):
                if own is not None:
                    new, words = list(own), [(part, len(own))]
                else:
                    encoded = self._backend.encode(part, add_special_tokens=False)
                    new, words = list(encoded.ids), _words(part, encoded)
                ends += [(word, len(numbers) + end) for word, end in words]
                numbers += new
                strengths += [strength] * len(new)
        return numbers, strengths, ends

    def _split(self, text: str) -> list[tuple[str, tuple[int, ...] | None]]:
        """The text at the added words, in capitals or not, the longest first."""
        parts: list[tuple[str, tuple[int, ...] | None]] = [(text, None)]
        for word in sorted(self.added, key=len, reverse=True):
            split: list[tuple[str, tuple[int, ...] | None]] = []
            for part, own in parts:
                if own is not None:
                    split.append((part, own))
                    continue
                for i, piece in enumerate(re.split(re.escape(word), part, flags=re.IGNORECASE)):
                    if i:
                        split.append((word, self.added[word]))
                    if piece.strip():
                        split.append((piece, None))
            parts = split
        return parts


def _words(text: str, encoded: Any) -> list[tuple[str, int]]:
    """The words of a text, as they were written, and how many tokens there are up to the end of each."""
    found: list[tuple[str, int]] = []
    begin = None
    for i, (first, last) in enumerate(encoded.offsets):
        begin = first if begin is None else begin
        following = encoded.offsets[i + 1][0] if i + 1 < len(encoded.offsets) else len(text)
        if i + 1 == len(encoded.offsets) or following > last or text[last - 1 : last].isspace():
            found.append((text[begin:last].strip(), i + 1))
            begin = None
    return [(word, end) for word, end in found if word]


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
