"""StyleGAN2's networks (Karras et al. 2020, arXiv:1912.04958): a generator by styles and a residual discriminator.

The generator adds up images of all resolutions, each from features by a 1x1 convolution (figure 7); a mapping network
gives the style that scales every convolution. The discriminator is residual, and sees how much the images of a batch
differ. Classes enter as in StyleGAN2-ADA (arXiv:2006.06676): as a vector beside the latent, and as a projection.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.dcgan import START, check_doubling
from diffusion_jax.models.edm_blocks import upsample
from diffusion_jax.models.equalized import BLUR, EqualizedConv, EqualizedDense, leaky_relu
from diffusion_jax.models.layers import normal
from diffusion_jax.models.modulated import ModulatedConv, ToImage
from diffusion_jax.options import described

_MAPPING_RATE = 0.01

_WIDTHS = {
    "channels": "at the full resolution; each level below has twice as many",
    "max_channels": "most channels of a level",
}


class Mapping(nn.Module):
    """The mapping network: latents [B, Z], classes int32 [B] or both -> [B, features], float32.

    Latents and the class's vector are brought to a mean square of one, and go through dense layers that learn at a
    hundredth of the rate.
    """

    features: int
    depth: int
    num_classes: int | None = None

    @nn.compact
    def __call__(self, latent: jax.Array | None, class_labels: jax.Array | None = None) -> jax.Array:
        checks.check_labels(self.num_classes, class_labels)
        parts = [] if latent is None else [_normalized(latent)]
        if self.num_classes is not None:
            table = self.param("class_embedding", normal(1.0), (self.num_classes, self.features))
            parts.append(_normalized(table[jnp.asarray(class_labels)]))
        h = jnp.concatenate(parts, -1)
        for layer in range(self.depth):
            h = leaky_relu(EqualizedDense(self.features, _MAPPING_RATE, name=f"layer_{layer}")(h))
        return h


@described(
    _WIDTHS,
    latent_dim="numbers that an image is drawn from",
    style_dim="of the styles that scale the convolutions",
    mapping_depth="layers from the latent to the style",
    noise="every layer adds noise, by a strength that it learns",
)
class StyleGAN2Generator(nn.Module):
    """See the module, and `latent_networks.Generator`; the style is the mapping network's output w.

    num_classes is None for an unconditional network. dtype is of the convolutions.
    """

    image_size: int = 64
    out_channels: int = 3
    latent_dim: int = 512
    style_dim: int = 512
    mapping_depth: int = 8
    channels: int = 64
    max_channels: int = 512
    noise: bool = True
    num_classes: int | None = None
    dtype: DTypeLike = "float32"

    def setup(self) -> None:
        widths = _widths(self.image_size, self.channels, self.max_channels)[::-1]
        self.mapping = Mapping(self.style_dim, self.mapping_depth, self.num_classes)
        self.start = self.param("start", normal(1.0), (START, START, widths[0]), jnp.float32)
        self.up_layers = [ModulatedConv(width, True, self.noise, self.dtype) for width in widths[1:]]
        self.layers = [ModulatedConv(width, False, self.noise, self.dtype) for width in widths]
        self.to_image = [ToImage(self.out_channels, self.dtype) for _ in widths]

    def style(self, latent: jax.Array, class_labels: jax.Array | None = None) -> jax.Array:
        """See `latent_networks.Generator`."""
        return self.mapping(latent, class_labels)

    def synthesize(self, style: jax.Array, noise_keys: jax.Array | None = None) -> jax.Array:
        """See `latent_networks.Generator`."""

        def keys(place: int) -> jax.Array | None:
            return None if noise_keys is None else jax.vmap(jax.random.fold_in, (0, None))(noise_keys, place)

        h = jnp.broadcast_to(self.start, (len(style), *self.start.shape))
        h = self.layers[0](h, style, keys(0))
        image = self.to_image[0](h, style)
        for level, (up, layer, to_image) in enumerate(
            zip(self.up_layers, self.layers[1:], self.to_image[1:], strict=True), 1
        ):
            h = layer(up(h, style, keys(2 * level - 1)), style, keys(2 * level))
            image = upsample(image, BLUR) + to_image(h, style)
        return image

    def __call__(
        self, latent: jax.Array, class_labels: jax.Array | None = None, noise_keys: jax.Array | None = None
    ) -> jax.Array:
        """See `latent_networks.Generator`."""
        return self.synthesize(self.style(latent, class_labels), noise_keys)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        counts = ("out_channels", "latent_dim", "style_dim", "mapping_depth", "channels", "max_channels")
        checks.check_counts(self, counts, optional=("num_classes",))
        checks.check_dtype(self.dtype)
        check_doubling(image_size, channels)


@described(
    _WIDTHS,
    group="images whose spread is shown to the discriminator; 1: none is",
    mapping_depth="layers from the class to what features are multiplied with",
)
class StyleGAN2Discriminator(nn.Module):
    """Images [B, H, W, C] and classes int32 [B] -> logits [B], float32; see the module.

    With a group above 1 a logit hangs on the other images of the batch, and how a batch is cut into parts matters.
    """

    channels: int = 64
    max_channels: int = 512
    group: int = 4
    mapping_depth: int = 8
    num_classes: int | None = None
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, image: jax.Array, class_labels: jax.Array | None = None) -> jax.Array:
        checks.check_labels(self.num_classes, class_labels)
        widths = _widths(image.shape[1], self.channels, self.max_channels)

        def conv(features: int, name: str, **options: Any) -> EqualizedConv:
            return EqualizedConv(features, dtype=self.dtype, name=name, **options)

        h = leaky_relu(conv(widths[0], "from_image", kernel_size=1)(image))
        for level, (width, below) in enumerate(itertools.pairwise(widths)):
            skip = conv(below, f"skip_{level}", kernel_size=1, down=True, use_bias=False)(h)
            h = leaky_relu(conv(width, f"conv_{level}")(h))
            h = leaky_relu(conv(below, f"down_{level}", down=True)(h))
            h = (h + skip) * math.sqrt(0.5)
        if self.group > 1:
            h = minibatch_deviation(h, self.group)
        h = leaky_relu(conv(widths[-1], "last_conv")(h))
        h = leaky_relu(EqualizedDense(widths[-1], dtype=self.dtype, name="last_dense")(h.reshape(len(h), -1)))
        h = h.astype(jnp.float32)
        if self.num_classes is None:
            return EqualizedDense(1, name="logit")(h)[..., 0]
        features = EqualizedDense(widths[-1], name="logit")(h)
        of_class = Mapping(widths[-1], self.mapping_depth, self.num_classes, name="class")(None, class_labels)
        return jnp.sum(features * of_class, axis=-1) / math.sqrt(widths[-1])

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        counts = ("channels", "max_channels", "group", "mapping_depth")
        checks.check_counts(self, counts, optional=("num_classes",))
        checks.check_dtype(self.dtype)
        check_doubling(image_size, channels)


def minibatch_deviation(x: jax.Array, group: int) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, C + 1]: beside the features, how much they differ between images of a group.

    The standard deviation of each feature over the group, averaged over features and pixels (Karras et al. 2018,
    section 3). Groups are of every B / group-th image; of a batch that is no multiple of `group`, of as many as divide
    it.
    """
    batch, height, width, channels = x.shape
    group = math.gcd(batch, group)
    parts = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(group, batch // group, height, width, channels)
    variance = jnp.square(parts - parts.mean(0)).mean(0)
    deviation = jnp.sqrt(variance + 1e-8).mean((1, 2, 3))
    shown = jnp.tile(deviation, group).astype(x.dtype)
    return jnp.concatenate([x, jnp.broadcast_to(shown[:, None, None, None], (batch, height, width, 1))], -1)


def _normalized(x: jax.Array) -> jax.Array:
    return x * lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-8)


def _widths(image_size: int, channels: int, most: int) -> list[int]:
    """Channels of the levels, from the full resolution down to 4x4."""
    return [min(channels * 2**level, most) for level in range(int(math.log2(image_size // START)) + 1)]
