"""SegNet as a denoiser (Badrinarayanan et al. 2017, arXiv:1511.00561): pooling that remembers where its maxima were.

The way down is a stack of convolutions and 2x2 max-pooling, as in VGG; the way up puts every value back at the place
where the maximum was found and fills the gaps by convolutions. Only these places pass beside the bottleneck, two bits
for each value. Two things are added so that it denoises: the time steers every normalisation, and the last block sees
the noisy image again.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models.blocks import BlockOptions
from diffusion_jax.models.checks import level_widths
from diffusion_jax.models.conditioned import Condition, ConditionedNorm, check_light, light_options
from diffusion_jax.models.layers import Dropout
from diffusion_jax.options import described


@described(
    channels="width of the network; level l has this times its entry of channel_mults",
    channel_mults="a factor of the channels for each level; each level halves the resolution of the one before",
    num_blocks="convolutions of a level on each way",
    dropout="share of activations that training drops before the last block",
)
class SegNet(nn.Module):
    """Predicts an image-shaped quantity from a noisy image and its time.

    num_classes is None for an unconditional network, else the class index num_classes is the null class. dtype is of
    the computation; parameters, normalisation and output are float32.
    """

    out_channels: int = 3
    channels: int = 64
    channel_mults: tuple[float, ...] = (1, 2, 4)
    num_blocks: int = 2
    num_classes: int | None = None
    dropout: float = 0.0
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array,
        class_labels: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The prediction [B, H, W, out_channels], float32.

        sample: [B, H, W, C], sides divisible by two for each level; timestep: scalar or [B]; class_labels: int32 [B]
        for a network with classes only; train applies dropout, from the PRNG stream "dropout". Raises ValueError for
        fields, sizes or labels that cannot be.
        """
        batch, height, width, image_channels = sample.shape
        for size in (height, width):
            self.validate(size, image_channels)
        options = light_options(self.dropout, self.dtype)
        condition = Condition(self.channels, self.num_classes, options, name="condition")
        embedding = condition(timestep, class_labels, batch)
        widths = level_widths(self.channels, self.channel_mults)

        h, places = sample, []
        for level, features in enumerate(widths):
            for i in range(self.num_blocks):
                h = ConvBlock(features, options, name=f"encoder_{level}_{i}")(h, embedding)
            h, index = max_pool(h)
            places.append(index)
        for level in reversed(range(len(widths))):
            h = max_unpool(h, places[level])
            for i in range(self.num_blocks):
                # the last convolution of a level turns to the channels of the next, whose places await it
                features = widths[max(level - 1, 0)] if i == self.num_blocks - 1 else widths[level]
                h = ConvBlock(features, options, name=f"decoder_{level}_{i}")(h, embedding)

        h = Dropout(self.dropout, deterministic=not train)(h)
        h = jnp.concatenate([h, sample.astype(h.dtype)], axis=-1)
        for i in range(2):
            h = ConvBlock(self.channels, options, name=f"last_{i}")(h, embedding)
        h = options.conv(self.out_channels, "conv_out", last=True)(h)
        return h.astype(jnp.promote_types(options.dtype, jnp.float32))

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work together or with images of that size."""
        check_light(self, image_size, channels)
        step = 2 ** len(self.channel_mults)
        if image_size % step:
            raise ValueError(
                f"image_size={image_size}: channel_mults={tuple(self.channel_mults)} pools it"
                f" {len(self.channel_mults)} times, so it must be a multiple of {step}, for example"
                f" {-(-image_size // step) * step}"
            )


class ConvBlock(nn.Module):
    """Convolution, normalisation steered by the embedding, SiLU."""

    features: int
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        h = self.options.conv(self.features, "conv")(x)
        return ConditionedNorm(self.options, name="norm")(h, embedding)


def max_pool(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maxima of all 2x2 squares and their places: [B, H, W, C] -> values and int32 indices, [B, H/2, W/2, C].

    Index 2 r + c is row r and column c of the square; of equal values the first counts, and takes the gradient.
    """
    quarters = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    index = jnp.argmax(jnp.stack(quarters), axis=0)
    values = jnp.select([index == place for place in range(4)], quarters)
    return values, index


def max_unpool(x: jax.Array, index: jax.Array) -> jax.Array:
    """Every value at its place in a 2x2 square of zeros: [B, H, W, C] and the same of indices -> [B, 2H, 2W, C]."""
    b, h, w, c = x.shape
    rows = [jnp.stack([jnp.where(index == 2 * row + column, x, 0) for column in (0, 1)], axis=3) for row in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, c)
