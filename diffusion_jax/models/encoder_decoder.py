"""A convolutional encoder-decoder as a denoiser: a residual network down, three transposed convolutions up.

The encoder is a ResNet (He et al. 2016) with the time embedding in its blocks, the decoder the classical upsampling by
transposed convolutions. What distinguishes it from a U-Net is that nothing but the noisy image itself passes beside the
bottleneck: the last block sees it again, without which no fine detail (and no noise) could be predicted.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models.blocks import ResnetBlock
from diffusion_jax.models.conditioned import Condition, ConditionedNorm, check_light, light_options
from diffusion_jax.models.layers import uniform
from diffusion_jax.options import described

LEVELS = 3


@described(
    num_blocks="residual blocks of a level",
    channels="width of the first layer and of the last block",
    channel_mults="a factor of the channels for each of the three levels below, which halve the resolution each",
    dropout="share of activations that training drops inside residual blocks",
)
class EncoderDecoder(nn.Module):
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

        sample: [B, H, W, C], sides divisible by 8; timestep: scalar or [B]; class_labels: int32 [B] for a network with
        classes only; train applies dropout, from the PRNG stream "dropout". Raises ValueError for fields, sizes or
        labels that cannot be.
        """
        batch, height, width, image_channels = sample.shape
        for size in (height, width):
            self.validate(size, image_channels)
        options = light_options(self.dropout, self.dtype)
        condition = Condition(self.channels, self.num_classes, options, name="condition")
        embedding = condition(timestep, class_labels, batch)

        h = options.conv(self.channels, "conv_in")(sample)
        widths = [round(mult * self.channels) for mult in self.channel_mults]
        for level, features in enumerate(widths):
            for i in range(self.num_blocks):
                block = ResnetBlock(features, options, None if i else "down", name=f"encoder_{level}_{i}")
                h = block(h, embedding, train)
        for level, features in enumerate((*widths[-2::-1], self.channels)):
            h = ConditionedNorm(options, name=f"decoder_{level}_norm")(h, embedding)
            h = TransposedConv(features, options.dtype, name=f"decoder_{level}")(h)

        h = options.conv(self.channels, "conv_image")(jnp.concatenate([h, sample.astype(h.dtype)], axis=-1))
        h = ResnetBlock(self.channels, options, name="last_block")(h, embedding, train)
        h = ConditionedNorm(options, name="norm_out")(h, embedding)
        h = options.conv(self.out_channels, "conv_out", last=True)(h)
        return h.astype(jnp.promote_types(options.dtype, jnp.float32))

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work together or with images of that size."""
        if len(self.channel_mults) != LEVELS:
            raise ValueError(
                f"channel_mults={tuple(self.channel_mults)}: it must hold {LEVELS} numbers, one for each level"
            )
        check_light(self, image_size, channels)
        if image_size % 2**LEVELS:
            above = -(-image_size // 2**LEVELS) * 2**LEVELS
            raise ValueError(f"image_size={image_size}: it must be a multiple of {2**LEVELS}, for example {above}")


class TransposedConv(nn.Module):
    """[B, H, W, C] -> [B, 2H, 2W, features]: a 4x4 transposed convolution of stride two."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # an output pixel sums over a quarter of the kernel
        init = uniform(math.sqrt(3 / (4 * x.shape[-1])))
        return nn.ConvTranspose(self.features, (4, 4), (2, 2), kernel_init=init, dtype=self.dtype, name="conv")(x)
