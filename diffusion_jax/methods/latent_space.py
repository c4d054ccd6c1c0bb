"""The space that latent diffusion works in: an autoencoder's latents, shifted and scaled channel by channel."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.diffusion.arrays import standard_normal


@dataclasses.dataclass(frozen=True)
class LatentSpace:
    """x = (latent - mean) * final_std / std, for each channel, and back.

    Stable Diffusion's and DiT's space is mean 0, std 1 / 0.18215, final_std 1 (Rombach et al. 2022, appendix G). EDM2's
    has the measured mean and deviation of each channel and final_std 0.5 (Karras et al. 2024, released code). EDM2 also
    gives the same autoencoder images in [0, 1], not in [-1, 1] as it was trained on, so that its latents are others.

    Attributes:
      mean, std: of the autoencoder's own latents, a number for each channel.
      final_std: standard deviation of what the network works on.
      unit_range: the autoencoder's images are in [0, 1]; unset they are in [-1, 1].
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    final_std: float = 1.0
    unit_range: bool = False

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"latents.mean has {len(self.mean)} channels, but latents.std {len(self.std)}")
        if not all(np.isfinite(self.mean)):
            raise ValueError(f"latents.mean is {self.mean}; it must be finite")
        if not all(value > 0 for value in (*self.std, self.final_std)):
            raise ValueError(f"latents.std is {self.std} and final_std {self.final_std}; they must be above 0")

    def draw(self, keys: jax.Array, stored: jax.Array) -> jax.Array:
        """What the network works on, float32 [B, H, W, C], from what is stored of B images.

        Args:
          keys: [B], for the draw from each image's Gaussian.
          stored: latents [B, H, W, C], or their means and standard deviations side by side [B, H, W, 2 C].
        """
        channels = len(self.mean)
        mean, deviation = stored[..., :channels], stored[..., channels:]
        if deviation.shape[-1]:
            mean = mean + deviation * jax.vmap(lambda key: standard_normal(key, mean.shape[1:], mean.dtype))(keys)
        return self.from_latents(mean)

    def from_latents(self, latents: jax.Array) -> jax.Array:
        """The autoencoder's latents [..., C] as the network works on them."""
        return (latents - jnp.asarray(self.mean, latents.dtype)) * self._scale(latents.dtype)

    def to_latents(self, x: jax.Array) -> jax.Array:
        """Back to the autoencoder's latents."""
        return x / self._scale(x.dtype) + jnp.asarray(self.mean, x.dtype)

    def _scale(self, dtype: jnp.dtype) -> jax.Array:
        return jnp.asarray(self.final_std / np.asarray(self.std), dtype)


class Decoder(NamedTuple):
    """apply(params, x): images float32 [N, ...] in [-1, 1] of what the network works on, which is in `space`."""

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    space: LatentSpace

    def of_stored(self, stored: jax.Array) -> jax.Array:
        """What the network works on, of what is stored of images: latents, or their means and deviations."""
        return self.space.from_latents(stored[..., : len(self.space.mean)])


def decode(autoencoder: nn.Module, params: Any, x: jax.Array, space: LatentSpace) -> jax.Array:
    """Images float32 [N, f H, f W, 3], clipped to [-1, 1], of what the network works on [N, H, W, C]."""
    images: Any = autoencoder.apply({"params": params}, space.to_latents(x), method="decode")
    return jnp.clip(2 * images - 1 if space.unit_range else images, -1, 1)


def encode(autoencoder: nn.Module, params: Any, images: jax.Array, unit_range: bool = False) -> jax.Array:
    """Means and standard deviations of the latents, float32 [N, H, W, 2 C], of images [N, f H, f W, 3] in [-1, 1]."""
    shown = (images + 1) / 2 if unit_range else images
    encoded: Any = autoencoder.apply({"params": params}, shown, method="encode")
    mean, log_variance = encoded
    return jnp.concatenate([mean, jnp.exp(0.5 * log_variance)], -1)
