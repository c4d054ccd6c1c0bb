"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): words whose embeddings were learned, added to a pipeline."""

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
from diffusion_jax.pipelines.latent import LatentDiffusion
from diffusion_jax.pipelines.text import TextEncoder

# Keys of files for several encoders -> which of the pipeline's CLIPs, in its order.
BY_ENCODER = {"clip_l": 0, "clip_g": 1, "text_encoders_0": 0, "text_encoders_1": 1}
WEB_UI, PARAMETERS = "emb_params", "string_to_param"
LAYOUTS = "{word: vectors} (diffusers), emb_params or string_to_param (web UIs), clip_l with clip_g (SDXL)"
TABLE = ("token_embedding", "embedding")


def add_embeddings(pipeline: LatentDiffusion, files: Sequence[tuple[str | Path, str | None]]) -> LatentDiffusion:
    """The pipeline with new words, each of one or several vectors.

    Prompts name the word as it is, in capitals or not; a word of n vectors takes the room of n tokens.

    Args:
      pipeline: of :func:`diffusion_jax.hub.load_pipeline`.
      files: .safetensors, .pt or .bin, each with the word to use; None takes the file's own word, and the file's name
        where it has none or "*", as the web UIs do.

    Raises:
      CheckpointError: a file that cannot be read or holds no embedding, vectors that fit no text encoder of the
        pipeline, a word that is there already.
    """
    for path, word in files:
        named, vectors = read_embedding(path, word)
        clips = [encoder for encoder in pipeline.encoders if isinstance(encoder.model, CLIPText)]
        chosen = _for_encoders(vectors, clips, Path(path))
        params = dict(pipeline.params)
        changed = {}
        for encoder, rows in chosen:
            changed[encoder.name], params[encoder.name] = _extended(encoder, params[encoder.name], named, rows, path)
        encoders = tuple(changed.get(encoder.name, encoder) for encoder in pipeline.encoders)
        pipeline = dataclasses.replace(pipeline, encoders=encoders, params=params)
    return pipeline


def read_embedding(path: str | Path, word: str | None = None) -> tuple[str, dict[int, np.ndarray]]:
    """(word, vectors [n, width] by encoder) of a file; a file for one encoder has them at 0.

    Raises CheckpointError for anything else.
    """
    path = Path(path)
    try:
        tree = readers.read_tree(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(tree, Mapping) or not tree:
        raise CheckpointError(f"{path}: holds no embedding; covered are {LAYOUTS}")
    own: Any = None
    if tree.keys() <= BY_ENCODER.keys():
        vectors = {BY_ENCODER[key]: value for key, value in tree.items()}
    elif WEB_UI in tree:
        vectors = {0: tree[WEB_UI]}
    elif PARAMETERS in tree:
        vectors = {0: _only(_parameters(tree[PARAMETERS]), path)[1]}
        own = tree.get("name")
    else:
        own, value = _only(tree, path)
        vectors = {0: value}
    word = word or (own if isinstance(own, str) and own not in ("", "*") else path.stem)
    return word, {place: _rows(value, path) for place, value in vectors.items()}


def _parameters(node: Any) -> Any:
    """The tensors of a dictionary, or of PyTorch's ParameterDict."""
    return node["_parameters"] if isinstance(node, Mapping) and "_parameters" in node else node


def _only(node: Any, path: Path) -> tuple[Any, Any]:
    if not isinstance(node, Mapping) or len(node) != 1:
        names = ", ".join(map(str, list(node)[:5])) if isinstance(node, Mapping) else type(node).__name__
        raise CheckpointError(f"{path}: holds {names}, not the vectors of one word; covered are {LAYOUTS}")
    return next(iter(node.items()))


def _rows(value: Any, path: Path) -> np.ndarray:
    rows = np.atleast_2d(np.asarray(value)) if isinstance(value, np.ndarray) else np.zeros(())
    if rows.ndim != 2 or not rows.size or not np.issubdtype(rows.dtype, np.floating):
        raise CheckpointError(f"{path}: holds no vectors [n, width]; covered are {LAYOUTS}")
    return rows.astype(np.float32)


def _for_encoders(
    vectors: Mapping[int, np.ndarray], clips: Sequence[TextEncoder], path: Path
) -> list[tuple[TextEncoder, np.ndarray]]:
    """Each CLIP of the pipeline with its vectors; all of them must have some."""
    widths = [encoder.model.width for encoder in clips]  # pyright: ignore[reportAttributeAccessIssue]
    got = [vectors[place].shape[1] for place in sorted(vectors)]
    if sorted(vectors) != list(range(len(clips))) or got != widths:
        raise CheckpointError(f"{path}: has vectors of widths {got}; the text encoders of this pipeline have {widths}")
    return [(encoder, vectors[place]) for place, encoder in enumerate(clips)]


def _extended(
    encoder: TextEncoder, params: Mapping[str, Any], word: str, rows: np.ndarray, path: str | Path
) -> tuple[TextEncoder, dict[str, Any]]:
    """The encoder with a longer table of embeddings, and its tokeniser with the word."""
    module, leaf = TABLE
    table = params[module][leaf]
    tokenizer: Any = encoder.tokenizer
    if tokenizer.count(word) <= 1 or word.lower() in (added.lower() for added in tokenizer.added):
        raise CheckpointError(f"{path}: the word {word!r} is in the vocabulary already; name another one")
    numbers = range(len(table), len(table) + len(rows))
    # old configs read the pooled vector at the largest number, which the new ones would be
    end = encoder.model.end_token  # pyright: ignore[reportAttributeAccessIssue]
    model = encoder.model.clone(
        vocab_size=len(table) + len(rows), end_token=tokenizer.end if end == LEGACY_END else end
    )
    longer = np.concatenate([np.asarray(table), rows.astype(table.dtype)])
    placed = jax.device_put(longer, table.sharding) if isinstance(table, jax.Array) else longer
    extended = TextEncoder(encoder.name, model, tokenizer.extended({word: numbers}))
    return extended, {**params, module: {**params[module], leaf: placed}}
