"""DCGAN's networks: strided convolutions from a latent to an image, and back to one number (Radford et al. 2016).

The layout is the paper's (arXiv:1511.06434, section 3), with one change: there is no batch normalisation, since an
image would hang on the others of its batch, which samples that follow from their own key alone cannot, and since
penalties of gradients are of one image's. The generator has group normalisation or none, the discriminator none.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.latent_networks import Projection, WithClass
from diffusion_jax.models.layers import GroupNorm, normal
from diffusion_jax.options import described

# Where the convolutions of the generator begin.
START = 4
NORMS = ("group", "none")
_INIT = normal(0.02)
_SLOPE, _GROUPS = 0.2, 8
_KERNEL = (4, 4)


@described(
    latent_dim="numbers that an image is drawn from",
    channels="of the convolution below the full resolution; each one further down has twice as many",
    norm="group or none, between the layers",
)
class DCGANGenerator(nn.Module):
    """A latent as an image of 4x4, doubled by transposed convolutions with ReLUs; the last gives a hyperbolic tangent.

    num_classes is None for an unconditional network. dtype is of the computation; parameters and output are float32.
    """

    image_size: int = 64
    out_channels: int = 3
    latent_dim: int = 100
    channels: int = 64
    norm: str = "group"
    num_classes: int | None = None
    dtype: DTypeLike = "float32"

    def setup(self) -> None:
        self.with_class = WithClass(self.num_classes)
        widths = _widths(self.image_size, self.channels)[::-1]
        self.project = nn.Dense(START * START * widths[0], dtype=self.dtype, kernel_init=_INIT)
        features = (*widths[1:], self.out_channels)
        self.convolutions = [
            nn.ConvTranspose(count, _KERNEL, (2, 2), dtype=self.dtype, kernel_init=_INIT) for count in features
        ]
        if self.norm == "group":
            self.norms = [GroupNorm(math.gcd(width, _GROUPS), 1e-5, self.dtype) for width in widths]

    def style(self, latent: jax.Array, class_labels: jax.Array | None = None) -> jax.Array:
        """See `latent_networks.Generator`."""
        return self.with_class(latent, class_labels)

    def synthesize(self, style: jax.Array, noise_keys: jax.Array | None = None) -> jax.Array:
        """See `latent_networks.Generator`."""
        del noise_keys
        h = self.project(style).reshape(len(style), START, START, -1)
        for place, convolution in enumerate(self.convolutions):
            h = self.norms[place](h) if self.norm == "group" else h
            h = convolution(nn.relu(h))
        return jnp.tanh(h.astype(jnp.float32))

    def __call__(
        self, latent: jax.Array, class_labels: jax.Array | None = None, noise_keys: jax.Array | None = None
    ) -> jax.Array:
        """See `latent_networks.Generator`."""
        return self.synthesize(self.style(latent, class_labels), noise_keys)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        checks.check_counts(self, ("out_channels", "latent_dim", "channels"), optional=("num_classes",))
        checks.check_choice("norm", self.norm, NORMS)
        check_doubling(image_size, channels)


@described(channels="of the first convolution; each one further down has twice as many")
class DCGANDiscriminator(nn.Module):
    """Strided convolutions with leaky ReLUs down to 4x4, and a projection: images [B, H, W, C] -> logits [B], float32.

    num_classes is None for an unconditional network.
    """

    channels: int = 64
    num_classes: int | None = None
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, image: jax.Array, class_labels: jax.Array | None = None) -> jax.Array:
        h = image
        for width in _widths(image.shape[1], self.channels):
            h = nn.Conv(width, _KERNEL, (2, 2), dtype=self.dtype, kernel_init=_INIT)(h)
            h = nn.leaky_relu(h, _SLOPE)
        return Projection(self.num_classes, name="logit")(h.reshape(len(h), -1), class_labels)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        checks.check_counts(self, ("channels",), optional=("num_classes",))
        check_doubling(image_size, channels)


def check_doubling(image_size: int, channels: int) -> None:
    """Raises ValueError, one line, for images that are not 4x4 doubled at least once."""
    checks.check_image(image_size, channels)
    if image_size < 2 * START or image_size & (image_size - 1):
        raise ValueError(f"images of {image_size} pixels: the side must be a power of two from {2 * START} up")


def _widths(image_size: int, channels: int) -> list[int]:
    """Channels of the levels, from half the resolution down to 4x4."""
    return [channels * 2**level for level in range(int(math.log2(image_size // START)))]
