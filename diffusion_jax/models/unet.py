"""The U-Net of DDPM, improved-diffusion and ADM.

One network, three papers: Ho et al. 2020 (arXiv:2006.11239, appendix B), Nichol & Dhariwal 2021
(arXiv:2102.09672) and Dhariwal & Nichol 2021 (arXiv:2105.05233). The field defaults are DDPM's for CIFAR-10:
35,746,307 parameters.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.blocks import BlockOptions, DownBlock, MidBlock, UpBlock
from diffusion_jax.models.layers import ACTIVATIONS, INITIALIZATIONS, Dense, Initialization, timestep_embedding
from diffusion_jax.models.remat import check_remat
from diffusion_jax.options import described

RESAMPLES = ("conv", "resblock")
TIME_EMBEDDINGS = ("positional", "fourier")


@described(
    channels="width of the network; level l has this times its entry of channel_mults",
    channel_mults="a factor of the channels for each level; each level halves the resolution of the one before",
    num_res_blocks="residual blocks of a level on the way down; the way up has one more",
    attention_resolutions="image resolutions at which every residual block is followed by self-attention",
    image_size="resolution that attention_resolutions are counted from; None: that of the images",
    mid_attention="attention between the two blocks at the lowest resolution",
    mid_attention_norm="group norm before that attention; False only for some checkpoints of diffusers",
    num_heads="heads of each attention, where head_channels is None",
    head_channels="width of an attention head, of which there are as many as fit; None: num_heads heads",
    resample="how resolution changes: conv (strided convolution) or resblock (inside a residual block, as ADM)",
    downsample_padding="of strided convolutions: 0 pads to the right and below (DDPM), 1 on all sides",
    scale_shift_norm="the time embedding scales and shifts the second norm of a block (improved DDPM, ADM)",
    norm_groups="groups of the normalisations; 32 in DDPM",
    norm_eps="of the normalisations; 1e-6 in DDPM, 1e-5 in OpenAI's networks",
    flip_sin_to_cos="cosines before sines in the time embedding, as OpenAI's networks have them",
    freq_shift="of the frequencies of the time embedding; 1 in DDPM, 0 in OpenAI's networks",
    time_scale="factor of the times before they are embedded; 1000 / T where improved DDPM rescales timesteps",
    dropout="share of activations that training drops inside residual blocks",
    initialization="of the parameters: ddpm, or pytorch as OpenAI's networks",
    remat="what the backward pass keeps: none (everything), dots, dots_no_batch, full (nothing, and computes again)",
)
class UNetEncoder(nn.Module):
    """The way down and the middle, which U-Nets share with the classifiers that guide them; fields as in `UNet`."""

    channels: int = 128
    channel_mults: tuple[float, ...] = (1, 2, 2, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (16,)
    image_size: int | None = None
    mid_attention: bool = True
    mid_attention_norm: bool = True
    num_heads: int = 1
    head_channels: int | None = None
    resample: str = "conv"
    downsample_padding: int = 0
    scale_shift_norm: bool = False
    norm_groups: int = 32
    norm_eps: float = 1e-6
    flip_sin_to_cos: bool = False
    freq_shift: float = 1.0
    time_scale: float = 1.0
    dropout: float = 0.1
    initialization: Initialization = "ddpm"
    remat: str = "none"
    dtype: DTypeLike = "float32"

    @nn.nowrap
    def embed_time(self, timestep: jax.Array, batch: int) -> jax.Array:
        """[B, 4 channels]; a submodule of the caller."""
        time = jnp.broadcast_to(jnp.asarray(timestep) * self.time_scale, (batch,))
        embedding = timestep_embedding(
            time, self.channels, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift
        )
        return TimeEmbedding(4 * self.channels, self.block_options(), name="time_embedding")(embedding)

    @nn.nowrap
    def encode(self, sample: jax.Array, embedding: jax.Array, train: bool) -> tuple[jax.Array, list[jax.Array]]:
        """What leaves the middle, and what every block before it gives, in order; submodules of the caller."""
        options, features = self.block_options(), self.level_channels()
        attention = self.level_attention(self.image_size or sample.shape[1])
        last = len(features) - 1
        h = options.conv(features[0], "conv_in")(sample)
        skips = [h]
        for level, width in enumerate(features):
            block = DownBlock(
                width, self.num_res_blocks, attention[level], level < last, options, name=f"down_blocks_{level}"
            )
            h, outputs = block(h, embedding, train)
            skips.extend(outputs)
        mid = MidBlock(features[-1], self.mid_attention, self.mid_attention_norm, self.mid_options(), name="mid_block")
        return mid(h, embedding, train), skips

    @nn.nowrap
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, highest resolution first."""
        return checks.level_widths(self.channels, self.channel_mults)

    @nn.nowrap
    def level_attention(self, image_size: int) -> tuple[bool, ...]:
        """Whether each level has attention, for levels counted from ``image_size``."""
        return checks.level_attention(image_size, len(self.channel_mults), self.attention_resolutions)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work together or with images of that size.

        Args:
          image_size: height (or width) of the images in pixels.
          channels: channels of the images.
        """
        checks.check_counts(
            self,
            ("channels", "num_res_blocks", "num_heads", "norm_groups"),
            optional=("image_size", "head_channels"),
        )
        checks.check_image(image_size, channels)
        checks.check_choice("resample", self.resample, RESAMPLES)
        checks.check_choice("downsample_padding", self.downsample_padding, (0, 1))
        checks.check_choice("initialization", self.initialization, INITIALIZATIONS)
        checks.check_dropout(self.dropout)
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps={self.norm_eps!r}: it must be positive")
        if not self.time_scale > 0:
            raise ValueError(f"time_scale={self.time_scale!r}: it must be positive")
        if self.channels // 2 <= self.freq_shift:
            raise ValueError(f"channels={self.channels}: the time embedding needs at least 4")
        checks.check_dtype(self.dtype)
        check_remat(self.remat)
        checks.check_levels(image_size, self.image_size, self.channel_mults, self.attention_resolutions)
        self._check_widths(self.image_size or image_size)

    @nn.nowrap
    def _check_widths(self, reference: int) -> None:
        features = self.level_channels()
        # the blocks of the way up also normalise the concatenation with a skip: sums of these
        for width in features:
            if width % self.norm_groups:
                divisors = [g for g in range(1, self.norm_groups + 1) if all(w % g == 0 for w in features)]
                raise ValueError(
                    f"norm_groups={self.norm_groups} does not divide a level's {width} channels"
                    f" (channels={self.channels}, channel_mults={tuple(self.channel_mults)});"
                    f" it could be {', '.join(map(str, divisors[-4:]))}"
                )
        attention = self.level_attention(reference)
        used = [width for width, here in zip(features, attention, strict=True) if here]
        used += [features[-1]] if self.mid_attention else []
        field = "num_heads" if self.head_channels is None else "head_channels"
        divisor = self.num_heads if self.head_channels is None else self.head_channels
        for width in used:
            if width % divisor:
                raise ValueError(f"{field}={divisor} does not divide the {width} channels of a level with attention")

    @nn.nowrap
    def block_options(self) -> BlockOptions:
        """What the blocks need to know."""
        names = (field.name for field in dataclasses.fields(BlockOptions))
        values = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return BlockOptions(**{**values, "dtype": jnp.dtype(self.dtype)})

    @nn.nowrap
    def mid_options(self) -> BlockOptions:
        """What the blocks of the middle need to know."""
        return self.block_options()


@described(
    activation="of residual blocks: silu, gelu, mish or relu",
    mid_scale="by which the residual blocks and the attention of the middle divide their sums; 1 in the papers",
    time_embedding="positional, or fourier: a network of noise levels, told at random frequencies (Song et al. 2021)",
    center_input="images are of [0, 1], and the network sees 2 x - 1",
)
class UNet(UNetEncoder):
    """Predicts an image-shaped quantity (noise, image, velocity) from a noisy image and its time.

    The defaults of the options are those of Ho et al. for CIFAR-10. What the data and the method decide:

    - out_channels: twice the image's for networks that also learn a variance.
    - num_classes: None for an unconditional network; null_class adds one more embedding, index num_classes, for
      "no class" (classifier-free guidance).
    - dtype: of the computation. Parameters, normalisation statistics, softmax and output are float32.
    """

    out_channels: int = 3
    num_classes: int | None = None
    null_class: bool = True
    activation: str = "silu"
    mid_scale: float = 1.0
    time_embedding: str = "positional"
    center_input: bool = False

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array,
        class_labels: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The prediction [B, H, W, out_channels], float32.

        Args:
          sample: noisy images [B, H, W, C].
          timestep: scalar or [B], integer or float, on the scale the network was trained with (DDPM: 0..999; the noise
            level, above zero, for time_embedding="fourier").
          class_labels: int32 [B], for a network with classes only; num_classes is the null class.
          train: applies dropout, from the PRNG stream "dropout".

        Raises:
          ValueError: fields or shapes that cannot work together, labels missing or unexpected.
        """
        batch, height, width, image_channels = sample.shape
        for size in (height, width):
            self.validate(size, image_channels)
        checks.check_labels(self.num_classes, class_labels)
        dtype = jnp.dtype(self.dtype)
        options = self.block_options()

        if self.center_input:
            sample = 2 * sample - 1
        embedding = self.embed_time(timestep, batch)
        if self.num_classes is not None:
            embed = nn.Embed(
                self.num_classes + self.null_class,
                4 * self.channels,
                embedding_init=nn.initializers.normal(1.0),
                dtype=dtype,
                name="class_embedding",
            )
            embedding = embedding + embed(jnp.asarray(class_labels))

        h, skips = self.encode(sample, embedding, train)
        features = self.level_channels()
        attention = self.level_attention(self.image_size or height)
        for i, level in enumerate(reversed(range(len(features)))):
            block = UpBlock(
                features[level],
                self.num_res_blocks + 1,
                attention[level],
                level > 0,
                options,
                name=f"up_blocks_{i}",
            )
            h = block(h, skips, embedding, train)
        h = nn.silu(options.norm("conv_norm_out")(h))
        h = options.conv(self.out_channels, "conv_out", last=True)(h)
        h = h.astype(jnp.promote_types(dtype, jnp.float32))
        if self.time_embedding == "fourier":
            h = h / jnp.broadcast_to(jnp.asarray(timestep, h.dtype) * self.time_scale, (batch,))[:, None, None, None]
        return h

    @nn.nowrap
    def embed_time(self, timestep: jax.Array, batch: int) -> jax.Array:
        """As :meth:`UNetEncoder.embed_time`."""
        if self.time_embedding == "positional":
            return super().embed_time(timestep, batch)
        level = jnp.broadcast_to(jnp.asarray(timestep) * self.time_scale, (batch,))
        features = LevelFeatures(self.channels, name="time_proj")(level)
        return TimeEmbedding(4 * self.channels, self.block_options(), name="time_embedding")(features)

    @nn.nowrap
    def mid_options(self) -> BlockOptions:
        """As :meth:`UNetEncoder.mid_options`."""
        return dataclasses.replace(self.block_options(), output_scale=self.mid_scale)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """As :meth:`UNetEncoder.validate`."""
        checks.check_counts(self, ("out_channels",), optional=("num_classes",))
        checks.check_choice("activation", self.activation, tuple(ACTIVATIONS))
        checks.check_choice("time_embedding", self.time_embedding, TIME_EMBEDDINGS)
        checks.check_positive("mid_scale", self.mid_scale)
        super().validate(image_size, channels)


class LevelFeatures(nn.Module):
    """Sines and cosines of 2 pi f log(level) at frequencies f drawn once from N(0, 16^2), [B] -> [B, 2 channels].

    The frequencies are saved with the network, but no gradient reaches them.
    """

    channels: int

    @nn.compact
    def __call__(self, level: jax.Array) -> jax.Array:
        init = nn.initializers.normal(16.0)
        frequencies = lax.stop_gradient(self.param("frequencies", init, (self.channels,), jnp.float32))
        level = level.astype(jnp.promote_types(level.dtype, jnp.float32))
        angles = jnp.log(level)[:, None] * (2 * jnp.pi * frequencies)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class DenseOptions(Protocol):
    """Whatever settles how a network's dense layers are made."""

    def dense(self, features: int, name: str, *, use_bias: bool = True) -> Dense: ...


class TimeEmbedding(nn.Module):
    """Two dense layers with an activation between them, [B, channels] -> [B, features].

    A condition [B, D] is brought to the channels by a matrix of its own and added before them.
    """

    features: int
    options: DenseOptions
    activation: str = "silu"

    @nn.compact
    def __call__(self, x: jax.Array, condition: jax.Array | None = None) -> jax.Array:
        if condition is not None:
            x = x + self.options.dense(x.shape[-1], "cond_proj", use_bias=False)(condition)
        x = ACTIVATIONS[self.activation](self.options.dense(self.features, "linear_1")(x))
        return self.options.dense(self.features, "linear_2")(x)
