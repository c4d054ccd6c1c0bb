"""What networks that draw from latents, and those that judge images, have in common."""

from __future__ import annotations

import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.models import checks


class Generator(Protocol):
    """A network from latents to images, in two parts: the latent and the class give a style, the style an image.

    Walks, means and lengths of paths are taken of latents or styles. Calling it is both parts.
    """

    latent_dim: int
    out_channels: int
    num_classes: int | None

    def style(self, latent: jax.Array, class_labels: jax.Array | None = None) -> jax.Array:
        """[B, latent_dim] and int32 [B], None without classes -> [B, D], float32."""
        ...

    def synthesize(self, style: jax.Array, noise_keys: jax.Array | None = None) -> jax.Array:
        """[B, D] -> [B, H, W, out_channels], float32.

        noise_keys: a PRNG key [B] for each image, of what the network draws itself; None: nothing.
        """
        ...

    def __call__(
        self, latent: jax.Array, class_labels: jax.Array | None = None, noise_keys: jax.Array | None = None
    ) -> jax.Array: ...

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any: ...


class WithClass(nn.Module):
    """The style of networks without a mapping of their own: the latent, and a learnt vector of the class beside it."""

    num_classes: int | None

    @nn.compact
    def __call__(self, latent: jax.Array, class_labels: jax.Array | None) -> jax.Array:
        checks.check_labels(self.num_classes, class_labels)
        if self.num_classes is None:
            return latent
        embed = nn.Embed(self.num_classes, latent.shape[-1], name="class_embedding")
        return jnp.concatenate([latent, embed(jnp.asarray(class_labels)).astype(latent.dtype)], -1)


class Projection(nn.Module):
    """Logits [B] of features [B, D]: a linear function, and of its class the product with a learnt vector.

    The projection discriminator (Miyato and Koyama 2018, arXiv:1802.05637, equation 3): what is said of the image, and
    what is said of the image as one of its class.
    """

    num_classes: int | None

    @nn.compact
    def __call__(self, features: jax.Array, class_labels: jax.Array | None) -> jax.Array:
        checks.check_labels(self.num_classes, class_labels)
        wide = features.astype(jnp.promote_types(features.dtype, jnp.float32))
        logits = nn.Dense(1, name="linear")(wide)[..., 0]
        if self.num_classes is None:
            return logits
        width = wide.shape[-1]
        embed = nn.Embed(self.num_classes, width, name="class_embedding")
        return logits + jnp.sum(embed(jnp.asarray(class_labels)) * wide, axis=-1) / math.sqrt(width)
