"""What a tokeniser is to those who use one: prompts to numbers, with the weight of each token.

`hub.tokenizer` opens the files of checkpoints as these.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffusion_jax.models.text import emphasis


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
          weighted: read the notation of :mod:`diffusion_jax.models.text.emphasis`; False takes brackets as they are.
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
