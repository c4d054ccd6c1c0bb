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

FAMILIES = ("sd", "sdxl", "sd3")
Conditions = dict[str, Any]


class Tokens(Protocol):
    """See :class:`diffusion_jax.hub.tokenizer.Tokens`."""

    @property
    def ids(self) -> np.ndarray: ...

    @property
    def weights(self) -> np.ndarray: ...


class Tokenizer(Protocol):
    """Prompts to numbers; see :class:`diffusion_jax.hub.tokenizer.Tokenizer`."""

    def __call__(self, prompts: Sequence[str], *, weighted: bool = True) -> Tokens: ...

    def places(self, prompt: str, words: Sequence[str]) -> dict[str, list[int]]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class TextEncoder:
    """One text encoder of a pipeline: its name among the parameters, its network, its tokeniser."""

    name: str
    model: nn.Module
    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """How the encoders' features become conditions.

    Attributes:
      family: "sd" (Stable Diffusion 1 and 2), "sdxl" or "sd3".
      context_width: of the tokens that the network reads; SD 3 pads to it.
      absent_tokens: SD 3 without its T5: so many tokens of zeros stand for it. 0 where there is one.
    """

    family: str
    context_width: int
    absent_tokens: int = 0


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
    """The conditions of the network, each [B, ...].

    "sd": ``encoder_hidden_states`` of the last layer. "sdxl" (Podell et al. 2023, section 2): of the layers before the
    last, side by side, and ``text_embeds``. "sd3" (Esser et al. 2024, section 4): CLIP's side by side, padded with
    zeros to T5's width, T5's tokens behind them, and ``pooled_projections``.

    clip_skip: how many more of CLIP's last layers are left out, for either prompt; the web interfaces count from 1.
    (diffusers leaves layers out for the prompt and not for the negative one.)
    """
    features: dict[str, Any] = {
        encoder.name: encoder.model.apply({"params": params[encoder.name]}, encoded[encoder.name][0])
        for encoder in encoders
    }

    def weighted(encoder: TextEncoder, hidden: jax.Array) -> jax.Array:
        return emphasize(hidden.astype(jnp.float32), encoded[encoder.name][1])

    if options.family == "sd":
        (encoder,) = encoders
        hidden: Any = features[encoder.name].last_hidden_state
        if clip_skip:
            earlier = features[encoder.name].hidden_states[-1 - clip_skip]
            variables = {"params": params[encoder.name]}
            hidden = encoder.model.apply(variables, earlier, method="normalize")
        return {"encoder_hidden_states": weighted(encoder, hidden)}

    clips = [encoder for encoder in encoders if isinstance(encoder.model, CLIPText)]
    hidden = jnp.concatenate(
        [weighted(encoder, features[encoder.name].hidden_states[-2 - clip_skip]) for encoder in clips], axis=-1
    )
    if options.family == "sdxl":
        return {"encoder_hidden_states": hidden, "text_embeds": features[clips[-1].name].pooled}

    pooled = jnp.concatenate([features[encoder.name].pooled for encoder in clips], axis=-1)
    hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, options.context_width - hidden.shape[-1])))
    others = [encoder for encoder in encoders if encoder not in clips]
    if others:
        long = weighted(others[0], features[others[0].name].last_hidden_state)
    else:
        long = jnp.zeros((len(hidden), options.absent_tokens, options.context_width), hidden.dtype)
    return {"encoder_hidden_states": jnp.concatenate([hidden, long], axis=1), "pooled_projections": pooled}


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
