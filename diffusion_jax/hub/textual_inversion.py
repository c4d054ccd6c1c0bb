"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): words that a few images taught a text encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import readers
from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.models.text import CLIPText
from diffusion_jax.models.text.clip import LEGACY_END
from diffusion_jax.pipelines import emphasis
from diffusion_jax.pipelines.latent import LatentDiffusion
from diffusion_jax.pipelines.text import TextEncoder

# Keys of files for several encoders -> which of the pipeline's CLIPs, in its order.
BY_ENCODER = {"clip_l": 0, "clip_g": 1, "text_encoders_0": 0, "text_encoders_1": 1}
TABLE, PARAMETERS = "emb_params", "string_to_param"  # of the web interfaces
LAYOUTS = f"one table by its word, {TABLE}, {PARAMETERS}, or clip_l with clip_g"


def add_embedding(pipeline: LatentDiffusion, file: str | Path, word: str | None = None) -> LatentDiffusion:
    """The pipeline with one more word, in capitals or not, which takes the room of as many tokens as it has vectors.

    Args:
      pipeline: of :func:`diffusion_jax.hub.load_pipeline`.
      file: diffusers' learned_embeds (.safetensors, .bin) or an embedding of the web interfaces (.pt, .safetensors).
      word: how prompts call it; None takes the word that the file states, or the name of the file.

    Raises:
      CheckpointError: a file that cannot be read or holds no embedding, one that lacks vectors for a CLIP of this
        pipeline or has them of another width, a word that is there already or that prompts cannot spell.
    """
    file = Path(file)
    try:
        tree = readers.read_tree(file)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    stated, tables = _tables(tree, file)
    word = word or stated or file.stem
    if emphasis.parse(word) != [(word, 1.0)]:
        raise CheckpointError(f"{file}: prompts cannot spell the word {word!r}: brackets are weights; name another one")
    clips = [encoder for encoder in pipeline.encoders if isinstance(encoder.model, CLIPText)]
    widths = [pipeline.params[encoder.name]["token_embedding"]["embedding"].shape[1] for encoder in clips]
    got = [tables[place].shape[1] for place in sorted(tables)]
    if sorted(tables) != list(range(len(clips))) or got != widths:
        raise CheckpointError(f"{file}: holds vectors of widths {got}; the CLIPs of this pipeline take {widths}")
    params, changed = dict(pipeline.params), {}
    for place, encoder in enumerate(clips):
        changed[encoder.name], params[encoder.name] = _taught(encoder, params[encoder.name], word, tables[place], file)
    encoders = tuple(changed.get(encoder.name, encoder) for encoder in pipeline.encoders)
    return dataclasses.replace(pipeline, encoders=encoders, params=params)


def _taught(
    encoder: TextEncoder, params: Mapping[str, Any], word: str, rows: np.ndarray, file: Path
) -> tuple[TextEncoder, dict[str, Any]]:
    """The encoder with a longer table of embeddings and a tokeniser that knows the word."""
    tokenizer: Any = encoder.tokenizer
    if tokenizer.count(word) == 1 or word.lower() in (added.lower() for added in tokenizer.added):
        raise CheckpointError(f"{file}: the word {word!r} is in the vocabulary already; name another one")
    before = params["token_embedding"]["embedding"]
    longer = np.concatenate([np.asarray(before), rows.astype(before.dtype)])
    placed = jax.device_put(longer, before.sharding) if isinstance(before, jax.Array) else longer
    model: Any = encoder.model
    # old configs mean the largest number by their end token, which the new tokens would be
    end = tokenizer.end if model.end_token == LEGACY_END else model.end_token
    taught = dataclasses.replace(
        encoder,
        model=model.clone(vocab_size=len(longer), end_token=end),
        tokenizer=tokenizer.extended({word: tuple(range(len(before), len(longer)))}),
    )
    return taught, {**params, "token_embedding": {"embedding": placed}}


def _tables(tree: Any, file: Path) -> tuple[str | None, dict[int, np.ndarray]]:
    """(the word that the file states, place among the pipeline's CLIPs -> vectors [n, width])."""
    found: Sequence[tuple[str | None, int, Any]] = ()
    if isinstance(tree, Mapping):
        if tree and tree.keys() <= BY_ENCODER.keys():
            found = [(None, BY_ENCODER[key], value) for key, value in tree.items()]
        elif TABLE in tree:
            found = [(None, 0, tree[TABLE])]
        elif isinstance(tree.get(PARAMETERS), Mapping):
            # a dictionary, or PyTorch's ParameterDict
            tables = tree[PARAMETERS].get("_parameters", tree[PARAMETERS])
            found = [(tree.get("name"), 0, value) for value in tables.values()] if len(tables) == 1 else ()
        elif len(tree) == 1:
            found = [(key, 0, value) for key, value in tree.items()]
    tables = {place: np.atleast_2d(value) for _, place, value in found if isinstance(value, np.ndarray)}
    fits = all(table.ndim == 2 and table.size and np.issubdtype(table.dtype, np.floating) for table in tables.values())
    if not tables or len(tables) != len(found) or not fits:
        raise CheckpointError(f"{file}: holds no embedding; it could be {LAYOUTS}")
    # "*" stood for the word in training
    words = [word for word, _, _ in found if isinstance(word, str) and word not in ("", "*")]
    return (words[0] if words else None), {place: table.astype(np.float32) for place, table in tables.items()}
