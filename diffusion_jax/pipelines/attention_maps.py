"""Attention of pixels to words, along the states of a sampling run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.diffusion.samplers import Sampler


def along(
    looks: Callable[..., dict[str, jax.Array]],
    sampler: Sampler,
    states: jax.Array,
    conditions: Any,
    words: jax.Array,
    shape: tuple[int, ...],
) -> dict[str, jax.Array]:
    """Attention to the words: transformer block -> [steps, B, h, w, words].

    The network runs a second time on the states that the sampler went through, so that a run without maps is the same
    program as ever.

    Args:
      looks: looks(x, t, conditions) is the attention of each block, [B, pixels, tokens].
      states: [steps + 1, B, H, W, C], the start first.
      words: [B, tokens, words], 1 for the tokens of each word.
      shape: of one latent.
    """

    def at_row(row: tuple[jax.Array, jax.Array, jax.Array]) -> dict[str, jax.Array]:
        state, scale, t = row
        found = {}
        for name, value in looks(scale * state, t, conditions).items():
            attended = jnp.einsum("bpt,btw->bpw", value, words)
            shrink = round(math.sqrt(shape[0] * shape[1] / attended.shape[1]))
            found[name] = attended.reshape(len(attended), shape[0] // shrink, shape[1] // shrink, -1)
        return found

    scales = jnp.asarray(sampler.table.input_scale, states.dtype)
    times = jnp.asarray(sampler.table.timestep, states.dtype)
    return jax.lax.map(at_row, (states[:-1], scales, times))
