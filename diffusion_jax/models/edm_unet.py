"""The U-Nets that EDM trains: DDPM++ and NCSN++ of Song et al. 2021 and ADM of Dhariwal & Nichol 2021.

Karras et al. 2022 (arXiv:2206.00364), table 1 and appendix F. These are the raw networks F of equation 7: ``sample``
is c_in x and ``timestep`` is c_noise (:mod:`diffusion_jax.diffusion.preconditioning`). The field defaults are DDPM++
for CIFAR-10: 55,733,891 parameters.

                       DDPM++         NCSN++           ADM, ImageNet 64x64
    family             "song"         "song"           "adm"
    embedding          "positional"   "fourier"        "positional"
    noise_channel_mult 1              2                1
    encoder            "standard"     "residual"       "standard"
    resample_filter    (1, 1)         (1, 3, 3, 1)     (1, 1)
    channels           128            128              192
    channel_mults      (2, 2, 2)      (2, 2, 2)        (1, 2, 3, 4)
    num_res_blocks     4              4                3
    attention at       16             16               32, 16, 8
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.edm_blocks import FAMILIES, EDMBlock, EDMOptions, downsample, norm_groups
from diffusion_jax.models.layers import Conv, timestep_embedding
from diffusion_jax.models.remat import check_remat, rematerialized
from diffusion_jax.options import described

EMBEDDINGS = ("positional", "fourier")
ENCODERS = ("standard", "skip", "residual")
DECODERS = ("standard", "skip")


@described(
    family="the blocks: song (DDPM++ and NCSN++) or adm (of ImageNet at 64x64)",
    channels="width of the network; level l has this times its entry of channel_mults",
    channel_mults="a factor of the channels for each level; each level halves the resolution of the one before",
    num_res_blocks="residual blocks of a level on the way down; the way up has one more",
    attention_resolutions="image resolutions with self-attention; the lowest level always has one between the ways",
    image_size="resolution that attention_resolutions are counted from; None: that of the images",
    augment_dim="length of the vector that says how an image was augmented, 9 with augmentation; 0: none",
    embedding="of the noise level: sinusoids at fixed (positional) or random (fourier) frequencies",
    noise_channel_mult="length of that embedding in units of channels; 2 for NCSN++",
    encoder="standard; skip adds the downsampled image to every level, residual a learnt downsampling of it",
    decoder="standard; skip sums an image predicted at every level",
    resample_filter="the filter with which resolution changes, an even number of taps",
    dropout="share of activations that training drops inside residual blocks",
    remat="what the backward pass keeps: none (everything), dots, dots_no_batch, full (nothing, and computes again)",
)
class EDMUNet(nn.Module):
    """Predicts an image-shaped quantity from a scaled noisy image and a function of its noise level.

    What the data and the method decide:

    - out_channels: of the prediction.
    - num_classes: None for an unconditional network. The label num_classes is "no class": a vector of zeros where
      other labels are one-hot, so that it costs no parameters.
    - dtype: of the computation. Parameters, normalisation statistics, softmax and output are float32.
    """

    out_channels: int = 3
    family: str = "song"
    channels: int = 128
    channel_mults: tuple[float, ...] = (2, 2, 2)
    num_res_blocks: int = 4
    attention_resolutions: tuple[int, ...] = (16,)
    image_size: int | None = None
    num_classes: int | None = None
    augment_dim: int = 0
    embedding: str = "positional"
    noise_channel_mult: int = 1
    encoder: str = "standard"
    decoder: str = "standard"
    resample_filter: tuple[float, ...] = (1, 1)
    dropout: float = 0.13
    remat: str = "none"
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array,
        class_labels: jax.Array | None = None,
        train: bool = False,
        augment_labels: jax.Array | None = None,
    ) -> jax.Array:
        """The raw output F [B, H, W, out_channels], float32.

        Args:
          sample: [B, H, W, C], scaled to about unit variance.
          timestep: scalar or [B], what the preconditioning calls c_noise.
          class_labels: int32 [B], for a network with classes only; num_classes is the null class.
          train: applies dropout, from the PRNG stream "dropout".
          augment_labels: float [B, augment_dim]; None (always so when sampling) is a vector of zeros.

        Raises:
          ValueError: fields or shapes that cannot work together, labels missing or unexpected.
        """
        batch, height, width, image_channels = sample.shape
        for size in (height, width):
            self.validate(size, image_channels)
        checks.check_labels(self.num_classes, class_labels)
        options = self._options()
        embedding = self._embed(options, batch, timestep, class_labels, augment_labels)
        attention = checks.level_attention(
            self.image_size or height, len(self.channel_mults), self.attention_resolutions
        )

        h, skips = self._encode(options, sample, embedding, attention, train)
        h = self._decode(options, h, skips, embedding, attention, train)
        return h.astype(jnp.promote_types(options.dtype, jnp.float32))

    def _embed(
        self,
        options: EDMOptions,
        batch: int,
        timestep: jax.Array,
        class_labels: jax.Array | None,
        augment_labels: jax.Array | None,
    ) -> jax.Array:
        """The embedding [B, 4 channels] of everything but the image, its last SiLU included."""
        song = self.family == "song"
        width = self.channels * self.noise_channel_mult
        time = jnp.broadcast_to(jnp.asarray(timestep), (batch,))
        if self.embedding == "fourier":
            embedding = FourierEmbedding(width, name="map_noise")(time)
        else:
            embedding = timestep_embedding(time, width, flip_sin_to_cos=not song, freq_shift=float(song))
        labels = None
        if self.num_classes is not None:
            labels = jax.nn.one_hot(class_labels, self.num_classes)
            if song:
                embedding += options.dense(width, "map_label")(labels * math.sqrt(self.num_classes))
        if self.augment_dim:
            if augment_labels is None:
                augment_labels = jnp.zeros((batch, self.augment_dim))
            init = nn.initializers.xavier_uniform() if song else nn.initializers.zeros
            dense = nn.Dense(width, use_bias=False, kernel_init=init, dtype=options.dtype, name="map_augment")
            embedding += dense(augment_labels)
        elif augment_labels is not None:
            raise ValueError("augment_dim=0, but augment_labels were given")

        embedding = nn.silu(options.dense(4 * self.channels, "map_layer0")(embedding))
        embedding = options.dense(4 * self.channels, "map_layer1")(embedding)
        if labels is not None and not song:
            init = nn.initializers.normal(1.0)
            dense = nn.Dense(4 * self.channels, use_bias=False, kernel_init=init, dtype=options.dtype, name="map_label")
            embedding += dense(labels)
        return nn.silu(embedding)

    def _encode(
        self,
        options: EDMOptions,
        sample: jax.Array,
        embedding: jax.Array,
        attention: tuple[bool, ...],
        train: bool,
    ) -> tuple[jax.Array, list[jax.Array]]:
        """The way down: features of the lowest level, and all that the way up will take, in order."""
        widths, make = self.level_channels(), rematerialized(EDMBlock, self.remat, (3,))
        first = self.channels if self.family == "song" else widths[0]
        h = options.conv(first, "encoder_0_conv")(sample)
        skips, side = [h], sample.astype(options.dtype)
        for level, width in enumerate(widths):
            name = f"encoder_{level}_"
            if level:
                h = make(h.shape[-1], options, "down", name=name + "down")(h, embedding, train)
                if self.encoder == "skip":
                    side = options.resample(side, "down")
                    h = h + options.conv(h.shape[-1], name + "aux_skip", kernel_size=1)(side)
                elif self.encoder == "residual":
                    side = self._learnt_downsampling(options, side, h.shape[-1], name + "aux_residual")
                    h = side = (h + side) * math.sqrt(0.5)
                skips.append(h)
            for i in range(self.num_res_blocks):
                block = make(width, options, attention=attention[level], name=f"{name}block{i}")
                h = block(h, embedding, train)
                skips.append(h)
        return h, skips

    def _decode(
        self,
        options: EDMOptions,
        h: jax.Array,
        skips: list[jax.Array],
        embedding: jax.Array,
        attention: tuple[bool, ...],
        train: bool,
    ) -> jax.Array:
        """The way up, to the prediction."""
        widths, make = self.level_channels(), rematerialized(EDMBlock, self.remat, (3,))
        last, image = len(widths) - 1, None
        for level in reversed(range(len(widths))):
            name = f"decoder_{level}_"
            if level == last:
                h = make(h.shape[-1], options, attention=True, name=name + "in0")(h, embedding, train)
                h = make(h.shape[-1], options, name=name + "in1")(h, embedding, train)
            else:
                h = make(h.shape[-1], options, "up", name=name + "up")(h, embedding, train)
            for i in range(self.num_res_blocks + 1):
                attend = attention[level] and (options.family.attend_every_block or i == self.num_res_blocks)
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                block = make(widths[level], options, attention=attend, name=f"{name}block{i}")
                h = block(h, embedding, train)
            if self.decoder == "skip" or level == 0:
                out = nn.silu(options.norm(h.shape[-1], name + "aux_norm")(h))
                out = options.conv(self.out_channels, name + "aux_conv", last=True)(out)
                image = out if image is None else options.resample(image, "up") + out
        assert image is not None  # level 0 gave one
        return image

    def _learnt_downsampling(self, options: EDMOptions, x: jax.Array, features: int, name: str) -> jax.Array:
        """A 3x3 convolution whose output includes the border that the filter needs, so that no zeros are smoothed in.

        The filter sums to one, so that it may as well act on the convolution with its bias.
        """
        border = (len(self.resample_filter) - 1) // 2
        conv = Conv(
            features,
            padding=1 + border,
            initialization=options.family.initialization,
            dtype=options.dtype,
            name=name,
        )
        return downsample(conv(x), self.resample_filter, pad=False)

    @nn.nowrap
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, highest resolution first."""
        return checks.level_widths(self.channels, self.channel_mults)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work together or with images of that size."""
        checks.check_counts(
            self,
            ("out_channels", "channels", "num_res_blocks", "noise_channel_mult"),
            optional=("image_size", "num_classes"),
        )
        checks.check_image(image_size, channels)
        checks.check_choice("family", self.family, tuple(FAMILIES))
        checks.check_choice("embedding", self.embedding, EMBEDDINGS)
        checks.check_choice("encoder", self.encoder, ENCODERS)
        checks.check_choice("decoder", self.decoder, DECODERS)
        checks.check_dropout(self.dropout)
        checks.check_dtype(self.dtype)
        check_remat(self.remat)
        if self.augment_dim < 0:
            raise ValueError(f"augment_dim={self.augment_dim}: it must be 0 (none) or more")
        checks.check_resample_filter(self.resample_filter)
        checks.check_levels(image_size, self.image_size, self.channel_mults, self.attention_resolutions)
        self._check_widths(self.image_size or image_size)

    @nn.nowrap
    def _check_widths(self, reference: int) -> None:
        widths = self.level_channels()
        first = self.channels if self.family == "song" else widths[0]
        # normalised are the features of every level and their concatenations with a skip of this level or the next
        joined = {a + b for a, b in zip(widths, (*widths[1:], widths[-1]), strict=True)}
        joined |= {2 * width for width in widths} | {widths[0] + first}
        for width in sorted({first, *widths, *joined}):
            if width < 4 or width % norm_groups(width):
                raise ValueError(
                    f"channels={self.channels}, channel_mults={tuple(self.channel_mults)}: a group normalisation of"
                    f" {width} channels would have {norm_groups(width)} groups; multiples of 32 channels always work"
                )
        head_channels = FAMILIES[self.family].head_channels
        attention = checks.level_attention(reference, len(widths), self.attention_resolutions)
        for width in {width for width, here in zip(widths, attention, strict=True) if here} | {widths[-1]}:
            if head_channels is not None and width % head_channels:
                raise ValueError(
                    f"channels={self.channels}: a level with attention has {width} channels; family {self.family!r}"
                    f" needs a multiple of {head_channels}"
                )

    @nn.nowrap
    def _options(self) -> EDMOptions:
        return EDMOptions(FAMILIES[self.family], tuple(self.resample_filter), self.dropout, jnp.dtype(self.dtype))


class FourierEmbedding(nn.Module):
    """sin and cos of 2 pi f t at frequencies f drawn once from N(0, scale^2), [B] -> [B, channels], float32.

    The frequencies belong to the network and are saved with it, but nothing trains them: their gradient is zero
    (weight decay would still shrink them).
    """

    channels: int
    scale: float = 16.0

    @nn.compact
    def __call__(self, time: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.scale)
        frequencies = lax.stop_gradient(self.param("frequencies", init, (self.channels // 2,), jnp.float32))
        angles = time.astype(jnp.promote_types(time.dtype, jnp.float32))[:, None] * (2 * np.pi * frequencies)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
