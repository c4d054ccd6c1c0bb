"""From what a method works on to images: nothing for pixels, an autoencoder's decoder for latents."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from diffusion_jax import batching, data
from diffusion_jax.methods.latent_space import Decoder
from diffusion_jax.metrics.devices import on_every_device
from diffusion_jax.training import sharding


class ImageDecoder:
    """Decodes in batches of `batch_size` over all devices. Several processes have to call it together.

    Attributes:
      decoder: of `Method.decoder`; None where the method works on images.
    """

    def __init__(self, decoder: Decoder | None, mesh: Mesh, batch_size: int):
        self.decoder = decoder
        self._mesh, self._batch_size = mesh, batch_size

    @functools.cached_property
    def parameters(self) -> Any:
        """Of the decoder, whole on every device; None without one."""
        return None if self.decoder is None else on_every_device(self._mesh, self.decoder.params)

    def decode(self, drawn: np.ndarray) -> np.ndarray:
        """Images float32 in [-1, 1] of what the method works on [N, ...]."""
        if self.decoder is None:
            return drawn
        return batching.mapped(functools.partial(self._decode, self.parameters), drawn, self._batch_size)

    def images_of(self, stored: np.ndarray) -> np.ndarray:
        """Images uint8 [N, H, W, C] of what a source holds; of latents, what the means decode to."""
        if self.decoder is None:
            return stored
        return data.to_uint8(self.decode(np.asarray(self.decoder.of_stored(jnp.asarray(stored)))))

    def load(self, source: data.Source, limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Images uint8 [N, H, W, C] and labels [N] of a source, at most `limit`, evenly spaced."""
        stored, labels = data.load_arrays(source, limit=limit)
        return self.images_of(stored), labels

    @functools.cached_property
    def _decode(self) -> Any:
        assert self.decoder is not None
        apply, split = self.decoder.apply, sharding.batch_sharding(self._mesh)
        return jax.jit(
            lambda params, drawn: apply(params, jax.lax.with_sharding_constraint(drawn, split)),
            out_shardings=sharding.replicated(self._mesh),
        )
