"""CLIP's vocabulary, which ships with this package: that of Stable Diffusion 1, 2 and XL, whose files hold none.

The byte pairs are those of Radford et al. 2021 (``clip/``, with their licence). Numbers follow from their order: 256
letters for the bytes, the same at the end of a word, a token for each pair, the start and the end.
"""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path

PAIRS = Path(__file__).with_name("clip") / "bpe_simple_vocab_16e6.txt.gz"
SIZE = 49408
START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
# What fills a text up: the end in Stable Diffusion 1 and SDXL's first encoder, number 0 in the OpenCLIP encoders.
OPENAI_PAD, OPEN_CLIP_PAD = END, "!"


@functools.cache
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(number of each token, pairs in the order in which they are joined)."""
    letters = _letters()
    count = SIZE - 2 * len(letters) - 2
    lines = gzip.decompress(PAIRS.read_bytes()).decode("utf-8").split("\n")[1 : count + 1]
    pairs = [(left, right) for left, right in (line.split() for line in lines)]
    joined = [left + right for left, right in pairs]
    tokens = [*letters, *(letter + WORD_END for letter in letters), *joined, START, END]
    return {token: number for number, token in enumerate(tokens)}, pairs


def write(directory: Path, pad: str) -> None:
    """Writes vocab.json, merges.txt and tokenizer_config.json, as transformers' CLIPTokenizer reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    numbers, pairs = vocabulary()
    merges = "\n".join(["#version: 0.2", *(f"{left} {right}" for left, right in pairs)])
    (directory / "vocab.json").write_text(json.dumps(numbers, ensure_ascii=False), encoding="utf-8")
    (directory / "merges.txt").write_text(f"{merges}\n", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text(json.dumps(settings(pad), indent=2) + "\n", encoding="utf-8")


def settings(pad: str) -> dict[str, object]:
    """What tokenizer_config.json says."""
    return {
        "tokenizer_class": "CLIPTokenizer",
        "bos_token": START,
        "eos_token": END,
        "unk_token": END,
        "pad_token": pad,
        "model_max_length": 77,
        "do_lower_case": True,
    }


def _letters() -> list[str]:
    """A visible letter for each byte: itself where it is one, or one from 256 on (Radford et al. 2019, GPT-2)."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) for byte in visible] + [chr(256 + place) for place in range(len(others))]
