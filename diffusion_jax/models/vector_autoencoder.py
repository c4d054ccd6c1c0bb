"""Encoders and decoders whose latent is one vector for an image, dense and convolutional (Kingma and Welling 2014).

The encoder gives a Gaussian of the latent, the decoder what a distribution of the image is made of. The autoencoders of
latent diffusion, whose latents are images, are in `models.autoencoder`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import autoencoder, checks
from diffusion_jax.models.layers import Dropout, Initializer
from diffusion_jax.options import described

# What code fills in from the data and from the distribution of the images.
FILLED = ("out_channels", "image_shape", "free_shape", "num_classes", "dtype")


@described(latent_size="numbers that an image is encoded to")
class VectorAutoencoder(nn.Module):
    """What the networks below share; a subclass has `to_moments` and `to_image`.

    out_channels are what the decoder makes of a latent for each pixel. free_shape is the shape of parameters that the
    decoder gives beside them, whatever the latent is, such as the scale of a Gaussian; None for none. num_classes is
    None for an unconditional network, else both halves are told the class. dtype is of the computation; parameters,
    normalisation and outputs are float32.
    """

    latent_size: int = 16
    out_channels: int = 1
    image_shape: tuple[int, int, int] = (8, 8, 1)
    free_shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    dtype: DTypeLike = "float32"

    def setup(self) -> None:
        if self.free_shape is not None:
            self.free = self.param("free", nn.initializers.zeros, self.free_shape)

    def __call__(self, image: jax.Array, class_labels: jax.Array | None = None, train: bool = False) -> jax.Array:
        """`decode` of the mean of `encode`: the reconstruction, and what makes the parameters."""
        return self.decode(self.encode(image, class_labels, train)[0], class_labels, train)

    def encode(
        self, image: jax.Array, class_labels: jax.Array | None = None, train: bool = False
    ) -> tuple[jax.Array, jax.Array]:
        """The Gaussian of the latent: mean and log variance, each float32 [B, latent_size], of images [B, H, W, C].

        class_labels: int32 [B] for a network with classes only; train applies dropout, from the PRNG stream "dropout".
        Raises ValueError for labels missing or unexpected.
        """
        checks.check_labels(self.num_classes, class_labels)
        moments = _at_least_float32(self.to_moments(image, class_labels, train))
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, autoencoder.MIN_LOGVAR, autoencoder.MAX_LOGVAR)

    def decode(self, latent: jax.Array, class_labels: jax.Array | None = None, train: bool = False) -> jax.Array:
        """What p(image | latent) is made of, float32 [B, H, W, out_channels] of latents [B, latent_size].

        With a free_shape these parameters follow, broadcast to the C channels of the image: [B, H, W, out_channels +
        C].
        """
        checks.check_labels(self.num_classes, class_labels)
        outputs = _at_least_float32(self.to_image(latent, class_labels, train))
        if self.free_shape is None:
            return outputs
        return jnp.concatenate([outputs, jnp.broadcast_to(self.free, (len(outputs), *self.image_shape))], axis=-1)

    def to_moments(self, image: jax.Array, class_labels: jax.Array | None, train: bool) -> jax.Array:
        """Mean and log variance side by side, [B, 2 latent_size]."""
        raise NotImplementedError

    def to_image(self, latent: jax.Array, class_labels: jax.Array | None, train: bool) -> jax.Array:
        """[B, latent_size] -> [B, H, W, out_channels]."""
        raise NotImplementedError


@described(
    width="of the residual streams of encoder and decoder",
    depth="residual blocks of each",
    dropout="share of activations that training drops inside the blocks",
)
class MLPAutoencoder(VectorAutoencoder):
    """Residual blocks of dense layers, for tiny images: on a CPU products of matrices are what is fast."""

    width: int = 512
    depth: int = 2
    dropout: float = 0.0

    def setup(self) -> None:
        super().setup()
        options = (self.width, self.depth, self.num_classes, self.dropout, self.dtype)
        self.encoder = DenseBlocks(2 * self.latent_size, *options)
        self.decoder = DenseBlocks(math.prod(self.image_shape[:2]) * self.out_channels, *options)

    def to_moments(self, image: jax.Array, class_labels: jax.Array | None, train: bool) -> jax.Array:
        return self.encoder(image.reshape(len(image), -1), class_labels, train)

    def to_image(self, latent: jax.Array, class_labels: jax.Array | None, train: bool) -> jax.Array:
        return self.decoder(latent, class_labels, train).reshape(-1, *self.image_shape[:2], self.out_channels)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        checks.check_counts(self, ("out_channels", "latent_size", "width", "depth"), optional=("num_classes",))
        checks.check_dropout(self.dropout)
        checks.check_image(image_size, channels)


class DenseBlocks(nn.Module):
    """[B, N] -> [B, features]: a dense layer, residual blocks that are told the class, and a dense layer."""

    features: int
    width: int
    depth: int
    num_classes: int | None
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, class_labels: jax.Array | None, train: bool) -> jax.Array:
        zeros = nn.initializers.zeros
        h = nn.Dense(self.width, dtype=self.dtype, name="input")(x)
        if class_labels is not None:
            # As loud as the rest from the start: a decoder that does not hear the class leaves it to the latent.
            h = h + self._told(class_labels, self.width, nn.initializers.normal(1.0), "class")
        for i in range(self.depth):
            residual = nn.LayerNorm(dtype=self.dtype, name=f"block_{i}_norm")(h)
            if class_labels is not None:
                told = self._told(class_labels, 2 * self.width, zeros, f"block_{i}_class")
                scale, shift = jnp.split(told, 2, axis=-1)
                residual = residual * (1 + scale) + shift
            residual = nn.silu(nn.Dense(self.width, dtype=self.dtype, name=f"block_{i}_1")(residual))
            residual = Dropout(self.dropout, deterministic=not train)(residual)
            h = h + nn.Dense(self.width, kernel_init=zeros, dtype=self.dtype, name=f"block_{i}_2")(residual)
        h = nn.LayerNorm(dtype=self.dtype, name="output_norm")(h)
        return nn.Dense(self.features, dtype=self.dtype, name="output")(h)

    def _told(self, class_labels: jax.Array, features: int, init: Initializer, name: str) -> jax.Array:
        assert self.num_classes is not None  # as there are labels
        embed = nn.Embed(self.num_classes, features, dtype=self.dtype, embedding_init=init, name=name)
        return embed(jnp.asarray(class_labels))


@described(
    channels="width of the level with the highest resolution",
    channel_mults="factors of it, one a level; each level after the first halves the resolution",
    num_res_blocks="residual blocks of a level of the encoder; the decoder has one more",
    norm_groups="groups of channels that are normalised together",
)
class ConvAutoencoder(VectorAutoencoder):
    """The convolutions of latent diffusion's autoencoder, without attention, and a dense layer on either side of z.

    The class is told as channels of its own beside those of the image, and beside the latent.
    """

    channels: int = 64
    channel_mults: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int = 1
    norm_groups: int = 16

    def setup(self) -> None:
        super().setup()
        options = autoencoder.convolutional_options(self.norm_groups, "none", self.dtype)
        levels = (self.widths, self.num_res_blocks, False, options)
        self.encoder = autoencoder.Encoder(self.widths[-1], *levels)
        self.decoder = autoencoder.Decoder(self.out_channels, *levels)
        self.moments = nn.Dense(2 * self.latent_size, dtype=self.dtype)
        self.start = nn.Dense(math.prod(self.smallest), dtype=self.dtype)
        if self.num_classes is not None:
            embed = functools.partial(nn.Embed, dtype=self.dtype, embedding_init=nn.initializers.normal(1.0))
            self.encoder_class = embed(self.num_classes, self.channels)
            self.decoder_class = embed(self.num_classes, self.channels)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, highest resolution first."""
        return checks.level_widths(self.channels, self.channel_mults)

    @property
    def smallest(self) -> tuple[int, int, int]:
        """(height, width, channels) of the level with the lowest resolution."""
        height, width = (side >> (len(self.channel_mults) - 1) for side in self.image_shape[:2])
        return height, width, self.widths[-1]

    def to_moments(self, image: jax.Array, class_labels: jax.Array | None, train: bool) -> jax.Array:
        if class_labels is not None:
            told = self.encoder_class(jnp.asarray(class_labels))[:, None, None]
            planes = jnp.broadcast_to(told, (*image.shape[:3], self.channels))
            image = jnp.concatenate([image.astype(planes.dtype), planes], axis=-1)
        h = self.encoder(image)
        return self.moments(nn.silu(h.reshape(len(h), -1)))

    def to_image(self, latent: jax.Array, class_labels: jax.Array | None, train: bool) -> jax.Array:
        if class_labels is not None:
            told = self.decoder_class(jnp.asarray(class_labels))
            latent = jnp.concatenate([latent.astype(told.dtype), told], axis=-1)
        return self.decoder(self.start(latent).reshape(-1, *self.smallest))

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        counts = ("out_channels", "latent_size", "channels", "num_res_blocks", "norm_groups")
        checks.check_counts(self, counts, optional=("num_classes",))
        checks.check_image(image_size, channels)
        checks.check_levels(image_size, None, self.channel_mults, ())
        checks.check_norm_groups(checks.level_widths(self.channels, self.channel_mults), self.norm_groups)


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
