"""An MLP that draws tiny images from latents, and one that judges them: dense products alone, fast on a CPU."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.latent_networks import Projection, WithClass
from diffusion_jax.options import described

_SLOPE = 0.2
# Beyond, the first and the last layer outgrow the rest.
_MOST_VALUES = 4096


@described(latent_dim="numbers that an image is drawn from", width="of the layers", depth="layers before the last")
class MLPGenerator(nn.Module):
    """Dense layers with layer normalisation and leaky ReLUs; the image is the hyperbolic tangent of the last.

    num_classes is None for an unconditional network. dtype is of the computation; parameters, normalisation and output
    are float32.
    """

    image_size: int = 8
    out_channels: int = 1
    latent_dim: int = 32
    width: int = 256
    depth: int = 3
    num_classes: int | None = None
    dtype: DTypeLike = "float32"

    def setup(self) -> None:
        self.with_class = WithClass(self.num_classes)
        self.layers = [nn.Dense(self.width, dtype=self.dtype) for _ in range(self.depth)]
        self.norms = [nn.LayerNorm() for _ in range(self.depth)]
        self.output = nn.Dense(self.image_size**2 * self.out_channels)

    def style(self, latent: jax.Array, class_labels: jax.Array | None = None) -> jax.Array:
        """See `latent_networks.Generator`."""
        return self.with_class(latent, class_labels)

    def synthesize(self, style: jax.Array, noise_keys: jax.Array | None = None) -> jax.Array:
        """See `latent_networks.Generator`."""
        del noise_keys
        h = style
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = nn.leaky_relu(norm(layer(h)), _SLOPE)
        pixels = jnp.tanh(self.output(h))
        return pixels.reshape(len(style), self.image_size, self.image_size, self.out_channels)

    def __call__(
        self, latent: jax.Array, class_labels: jax.Array | None = None, noise_keys: jax.Array | None = None
    ) -> jax.Array:
        """See `latent_networks.Generator`."""
        return self.synthesize(self.style(latent, class_labels), noise_keys)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        checks.check_counts(self, ("out_channels", "latent_dim", "width", "depth"), optional=("num_classes",))
        _check_small(image_size, channels)


@described(width="of the layers", depth="layers before the last")
class MLPDiscriminator(nn.Module):
    """Dense layers with leaky ReLUs, and `latent_networks.Projection`: images [B, H, W, C] -> logits [B], float32.

    There is no normalisation: one over the batch would make an image's logit hang on the others, and penalties of the
    gradient are of one image's.
    """

    width: int = 256
    depth: int = 3
    num_classes: int | None = None
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, image: jax.Array, class_labels: jax.Array | None = None) -> jax.Array:
        h = image.reshape(len(image), -1)
        for _ in range(self.depth):
            h = nn.leaky_relu(nn.Dense(self.width, dtype=self.dtype)(h), _SLOPE)
        return Projection(self.num_classes, name="logit")(h, class_labels)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        checks.check_counts(self, ("width", "depth"), optional=("num_classes",))
        _check_small(image_size, channels)


def _check_small(image_size: int, channels: int) -> None:
    checks.check_image(image_size, channels)
    if math.prod((image_size, image_size, channels)) > _MOST_VALUES:
        raise ValueError(
            f"images of {image_size}x{image_size}x{channels}: an MLP takes at most {_MOST_VALUES} values an image; use "
            "'dcgan' or 'stylegan2'"
        )
