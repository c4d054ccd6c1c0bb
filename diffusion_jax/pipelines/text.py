"""Prompts to what the network is told: token numbers through one, two or three text encoders."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.models.text import CLIPText
from diffusion_jax.pipelines.families import FAMILIES, Conditions, EncodedTexts, TextOptions


class Tokens(Protocol):
    """See :class:`diffusion_jax.models.text.tokenizer.Tokens`."""

    @property
    def ids(self) -> np.ndarray: ...

    @property
    def weights(self) -> np.ndarray: ...


class Tokenizer(Protocol):
    """Prompts to numbers; see :class:`diffusion_jax.models.text.tokenizer.Tokenizer`."""

    def __call__(self, prompts: Sequence[str], *, weighted: bool = True) -> Tokens: ...

    def places(self, prompt: str, words: Sequence[str]) -> dict[str, list[int]]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """One text encoder of a pipeline: its name among the parameters, its network, its tokeniser."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer


Encoded = dict[str, tuple[jax.Array, jax.Array]]  # encoder -> (numbers, weights), each [B, N]


def tokenize(encoders: Sequence[TextEncoder], prompts: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The prompts as each encoder's tokeniser has them."""
    encoded = {}
    for encoder in encoders:
        tokens = encoder.tokenizer(prompts)
        encoded[encoder.name] = (tokens.ids, tokens.weights)
    return encoded


def encode(
    encoders: Sequence[TextEncoder],
    options: TextOptions,
    params: Mapping[str, Any],
    encoded: Encoded,
    clip_skip: int,
) -> Conditions:
    """The conditions of the network, each [B, ...], as its family has them (:mod:`diffusion_jax.pipelines.families`).

    clip_skip: how many more of CLIP's last layers are left out, for either prompt; the web interfaces count from 1.
    (diffusers leaves layers out for the prompt and not for the negative one.)
    """
    texts = [_encoded(encoder, params[encoder.name], *encoded[encoder.name]) for encoder in encoders]
    return FAMILIES[options.family].conditions(texts, options, clip_skip)


def _encoded(encoder: TextEncoder, params: Any, ids: jax.Array, weights: jax.Array) -> EncodedTexts:
    model, variables = encoder.model, {"params": params}
    return EncodedTexts(
        model.apply(variables, ids),
        isinstance(model, CLIPText),
        lambda hidden: emphasize(hidden.astype(jnp.float32), weights),
        lambda hidden: model.apply(variables, hidden, method="normalize"),  # pyright: ignore[reportArgumentType]
    )


def emphasize(hidden: jax.Array, weights: jax.Array) -> jax.Array:
    """Tokens [B, N, C] times their weights [B, N], rescaled so that each text keeps its mean (the web UI's rule)."""
    scaled = hidden * weights[..., None].astype(hidden.dtype)
    before, after = (x.mean(axis=(1, 2), keepdims=True) for x in (hidden, scaled))
    changed = (weights != 1).any(axis=1)[:, None, None] & (after != 0)
    return jnp.where(changed, scaled * (before / jnp.where(changed, after, 1)), hidden)


def check_clip_skip(encoders: Sequence[TextEncoder], clip_skip: int) -> None:
    """Raises ValueError unless every CLIP has so many layers to leave out."""
    depth = min((encoder.model.depth for encoder in encoders if isinstance(encoder.model, CLIPText)), default=1)
    if not 0 <= clip_skip < depth:
        raise ValueError(f"clip_skip is {clip_skip}; with this text encoder it can be 0 to {depth - 1}")
