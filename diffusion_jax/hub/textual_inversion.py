"""Textual inversion (Gal et al. 2022, arXiv:2208.01618): words that a few images taught a text encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import readers
from diffusion_jax.hub.files import CheckpointError
from diffusion_jax.pipelines.latent import LatentDiffusion

# SDXL's files hold one table for each of its encoders
SDXL_KEYS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
TABLES = ("emb_params",)  # the web interfaces' name of the only table


def add_embedding(pipeline: LatentDiffusion, file: str | Path, word: str | None = None) -> LatentDiffusion:
    """The pipeline with one more word, of one or more tokens.

    Args:
      pipeline: of :func:`diffusion_jax.hub.load_pipeline`.
      file: diffusers' learned_embeds (.safetensors, .bin) or an embedding of the web interfaces (.pt, .safetensors).
      word: how prompts call it; None takes the file's name for it, or the name of the file.

    Raises:
      CheckpointError: a file that cannot be read or holds no embedding, or one for another text encoder.
    """
    file = Path(file)
    try:
        tree = readers.read_tree(file)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    stated, tables = _tables(tree, file, [encoder.name for encoder in pipeline.encoders])
    word = word or stated or file.stem
    encoders, params = [], dict(pipeline.params)
    for encoder in pipeline.encoders:
        if encoder.name not in tables:
            encoders.append(encoder)
            continue
        rows = np.asarray(tables[encoder.name], np.float32)
        rows = rows[None] if rows.ndim == 1 else rows
        tree = params[encoder.name]
        before = tree["token_embedding"]["embedding"]
        if rows.ndim != 2 or rows.shape[1] != before.shape[1]:
            raise CheckpointError(
                f"{file}: the embedding has shape {list(rows.shape)}; {encoder.name} takes vectors of {before.shape[1]}"
            )
        numbers = range(len(before), len(before) + len(rows))
        longer = np.concatenate([np.asarray(before), rows.astype(before.dtype)])
        placed = longer if pipeline.offload_text else jax.device_put(longer)
        params[encoder.name] = {**tree, "token_embedding": {"embedding": placed}}
        tokenizer: Any = encoder.tokenizer
        model = encoder.model.clone(vocab_size=len(longer))
        encoders.append(dataclasses.replace(encoder, model=model, tokenizer=tokenizer.extended({word: tuple(numbers)})))
    return dataclasses.replace(pipeline, encoders=tuple(encoders), params=params)


def _tables(tree: Any, file: Path, encoders: list[str]) -> tuple[str | None, dict[str, np.ndarray]]:
    """(the word that the file states, encoder -> embedding)."""
    if isinstance(tree, Mapping):
        if isinstance(tree.get("string_to_param"), Mapping):
            name = tree.get("name")
            tables = [value for value in tree["string_to_param"].values() if isinstance(value, np.ndarray)]
            if len(tables) == 1:
                return (name if isinstance(name, str) else None), {encoders[0]: tables[0]}
        arrays = {key: value for key, value in tree.items() if isinstance(value, np.ndarray)}
        if arrays and set(arrays) <= set(SDXL_KEYS):
            missing = [SDXL_KEYS[key] for key in arrays if SDXL_KEYS[key] not in encoders]
            if missing:
                raise CheckpointError(f"{file}: is for SDXL; this pipeline has no {', '.join(missing)}")
            return None, {SDXL_KEYS[key]: value for key, value in arrays.items()}
        if len(arrays) == 1:
            ((name, table),) = arrays.items()
            return (None if name in TABLES else str(name)), {encoders[0]: table}
    raise CheckpointError(
        f"{file}: holds no embedding; it could be one table by its word, emb_params, string_to_param, or clip_l, clip_g"
    )
