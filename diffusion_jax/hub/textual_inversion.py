"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): words that a few images taught a text encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import readers
from diffusion_jax.hub.files import CheckpointError, few
from diffusion_jax.models.text import CLIPText, emphasis
from diffusion_jax.models.text.clip import LEGACY_END
from diffusion_jax.pipelines.latent import LatentDiffusion
from diffusion_jax.pipelines.text import TextEncoder

# Keys of files for several encoders -> which of the pipeline's CLIPs, in its order.
BY_ENCODER = {"clip_l": 0, "clip_g": 1, "text_encoders_0": 0, "text_encoders_1": 1}
TABLE, PARAMETERS = "emb_params", "string_to_param"  # of the web interfaces
LAYOUTS = f"tables by their words, {TABLE}, {PARAMETERS}, or clip_l with clip_g"


def add_embedding(pipeline: LatentDiffusion, file: str | Path, word: str | None = None) -> LatentDiffusion:
    """The pipeline with the words of a file, in capitals or not, each in the room of as many tokens as it has vectors.

    Args:
      pipeline: of :func:`diffusion_jax.hub.load_pipeline`.
      file: diffusers' learned_embeds (.safetensors, .bin) or an embedding of the web interfaces (.pt, .safetensors).
      word: how prompts call the only word of a file; None takes the words that the file states, or the name of the
        file.

    Raises:
      CheckpointError: a file that cannot be read or holds no embedding, one that lacks vectors for a CLIP of this
        pipeline or has them of another width, a word that is there already or that prompts cannot spell, or a name for
        a file of several words.
    """
    file = Path(file)
    try:
        tree = readers.read_tree(file)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    words = _words(tree, file)
    if word and len(words) > 1:
        raise CheckpointError(
            f"{file}: holds {len(words)} words, {few([repr(name) for name in words])}, which keep their names; name"
            f" the file without {word!r}"
        )
    if word:
        words = {word: next(iter(words.values()))}
    clips = [encoder for encoder in pipeline.encoders if isinstance(encoder.model, CLIPText)]
    widths = [pipeline.params[encoder.name]["token_embedding"]["embedding"].shape[1] for encoder in clips]
    for name, tables in words.items():
        if emphasis.parse(name) != [(name, 1.0)]:
            raise CheckpointError(
                f"{file}: prompts cannot spell the word {name!r:.60}: brackets are weights; name another one"
            )
        got = [tables[place].shape[1] for place in sorted(tables)]
        if sorted(tables) != list(range(len(clips))) or got != widths:
            of = f" of {name!r:.60}" if len(words) > 1 else ""
            raise CheckpointError(
                f"{file}: holds vectors{of} of widths {got}; the CLIPs of this pipeline take {widths}"
            )
    params, changed = dict(pipeline.params), {}
    for place, encoder in enumerate(clips):
        rows = {name: tables[place] for name, tables in words.items()}
        changed[encoder.name], params[encoder.name] = _taught(encoder, params[encoder.name], rows, file)
    encoders = tuple(changed.get(encoder.name, encoder) for encoder in pipeline.encoders)
    return dataclasses.replace(pipeline, encoders=encoders, params=params)


def _taught(
    encoder: TextEncoder, params: Mapping[str, Any], words: Mapping[str, np.ndarray], file: Path
) -> tuple[TextEncoder, dict[str, Any]]:
    """The encoder with a longer table of embeddings and a tokeniser that knows the words."""
    tokenizer: Any = encoder.tokenizer
    before = params["token_embedding"]["embedding"]
    numbers: dict[str, tuple[int, ...]] = {}
    count, known = len(before), {added.lower() for added in tokenizer.added}
    for word, rows in words.items():
        if tokenizer.count(word) == 1 or word.lower() in known:
            raise CheckpointError(f"{file}: the word {word!r} is in the vocabulary already; name another one")
        known.add(word.lower())
        numbers[word] = tuple(range(count, count + len(rows)))
        count += len(rows)
    longer = np.concatenate([np.asarray(before), *(rows.astype(before.dtype) for rows in words.values())])
    placed = jax.device_put(longer, before.sharding) if isinstance(before, jax.Array) else longer
    model: Any = encoder.model
    # old configs mean the largest number by their end token, which the new tokens would be
    end = tokenizer.end if model.end_token == LEGACY_END else model.end_token
    taught = dataclasses.replace(
        encoder,
        model=model.clone(vocab_size=count, end_token=end),
        tokenizer=tokenizer.extended(numbers),
    )
    return taught, {**params, "token_embedding": {"embedding": placed}}


def _words(tree: Any, file: Path) -> dict[str, dict[int, np.ndarray]]:
    """Word -> place among the pipeline's CLIPs -> vectors, float32 [n, width]; the file's name where it states none."""
    found: Sequence[tuple[Any, int, Any]] = ()
    if isinstance(tree, Mapping):
        if tree and tree.keys() <= BY_ENCODER.keys():
            found = [(None, BY_ENCODER[key], value) for key, value in tree.items()]
        elif TABLE in tree:
            found = [(None, 0, tree[TABLE])]
        elif isinstance(tree.get(PARAMETERS), Mapping):
            # a dictionary, or PyTorch's ParameterDict
            tables = tree[PARAMETERS].get("_parameters", tree[PARAMETERS])
            found = [(tree.get("name"), 0, value) for value in tables.values()] if len(tables) == 1 else ()
        else:
            found = [(key, 0, value) for key, value in tree.items()]
    words: dict[str, dict[int, np.ndarray]] = {}
    for stated, place, value in found:
        # "*" stood for the word in training
        word = stated if isinstance(stated, str) and stated not in ("", "*") else file.stem
        table = np.atleast_2d(value) if isinstance(value, np.ndarray) else np.empty(0)
        fits = table.ndim == 2 and table.size and np.issubdtype(table.dtype, np.floating)
        if not fits or place in words.get(word, ()):
            raise CheckpointError(f"{file}: holds no embedding; it could be {LAYOUTS}")
        words.setdefault(word, {})[place] = table.astype(np.float32)
    if not words:
        raise CheckpointError(f"{file}: holds no embedding; it could be {LAYOUTS}")
    return words
