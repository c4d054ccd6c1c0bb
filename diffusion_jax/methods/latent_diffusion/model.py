"""Diffusion of an autoencoder's latents (Rombach et al. 2022); images are encoded beforehand and decoded afterwards."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.methods.diffusion.model import Diffusion
from diffusion_jax.methods.examples import Batch, example_keys
from diffusion_jax.methods.latent_space import LatentSpace


@dataclasses.dataclass(frozen=True)
class DiffusionOfLatents(Diffusion):
    """As `Diffusion`, where a batch's "image" holds latents, or their means and standard deviations [B, H, W, 2 C].

    Images are drawn anew from their Gaussians at every step, and what is sampled, [N, H, W, C] in `space`, is not
    clipped.

    Attributes:
      space: what the network works on.
      clip: None, because latents have no limits.
    """

    clip: float | None = None
    space: LatentSpace = dataclasses.field(kw_only=True)

    def prepare(self, state: Any, batch: Batch, key: jax.Array) -> Batch:
        keys = jax.vmap(jax.random.fold_in, (0, None))(example_keys(key, batch), 3)
        stored = jnp.asarray(batch["image"])
        return super().prepare(state, {**batch, "image": self.space.draw(keys, stored)}, key)
