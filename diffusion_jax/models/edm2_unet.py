"""The magnitude-preserving U-Net of EDM2 (Karras et al. 2024, arXiv:2312.02696, config G and figure 21).

Like :mod:`diffusion_jax.models.edm_unet` this is the raw network F of EDM's preconditioning: ``sample`` is c_in x and
``timestep`` is c_noise. There are no biases, no group normalisations and no learnt scales but two kinds of gain that
start at zero. Train it with :func:`diffusion_jax.models.magnitude_preserving.normalize_weights` after every update.

The sizes of the paper differ in ``channels`` alone; for latents of 64x64x4 and 1000 classes:

    XXS 64   XS 128   S 192   M 256   L 320   XL 384   XXL 448
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.attention import dot_product_attention
from diffusion_jax.models.edm_blocks import Resample, downsample, upsample
from diffusion_jax.models.layers import Dropout
from diffusion_jax.models.magnitude_preserving import (
    MPConv,
    MPDense,
    MPFourier,
    mp_concatenate,
    mp_silu,
    mp_sum,
    normalize,
    normalize_weights,
)
from diffusion_jax.models.once import computed_once
from diffusion_jax.models.remat import check_remat, rematerialized
from diffusion_jax.options import described


@dataclasses.dataclass(frozen=True)
class EDM2Options:
    """What all blocks of one network share; the fields are those of :class:`EDM2UNet`."""

    head_channels: int
    residual_balance: float
    attention_balance: float
    clip_activations: float | None
    resample_filter: tuple[float, ...]
    dropout: float
    dtype: DTypeLike


@described(
    channels="width of the network; level l has this times its entry of channel_mults",
    channel_mults="a factor of the channels for each level; each level halves the resolution of the one before",
    num_res_blocks="residual blocks of a level on the way down; the way up has one more",
    attention_resolutions=(
        "image resolutions with self-attention behind every block; the lowest level always has one in the middle"
    ),
    image_size="resolution that attention_resolutions are counted from; None: that of the images",
    head_channels="width of an attention head",
    label_balance="how much the class weighs beside the noise level in the embedding, from 0 to 1",
    concat_balance="how much a skip connection weighs beside the way up, from 0 to 1",
    residual_balance="how much the residual branch of a block weighs, from 0 to 1",
    attention_balance="how much attention weighs beside its input, from 0 to 1",
    clip_activations="magnitude to which the outputs of blocks are clipped; None: never",
    resample_filter="the filter with which resolution changes, an even number of taps",
    uncertainty_channels="width of the estimate of the loss's variance, for the adaptive weighting",
    dropout="share of activations that training drops inside residual blocks",
    remat="what the backward pass keeps: none (everything), dots, dots_no_batch, full (nothing, and computes again)",
)
class EDM2UNet(nn.Module):
    """Predicts an image-shaped quantity from a scaled noisy image and a function of its noise level.

    The defaults of the options are EDM2-S. What the data and the method decide:

    - out_channels: of the prediction.
    - num_classes: None for an unconditional network. The label num_classes is "no class": a vector of zeros where
      other labels are one-hot.
    - dtype: of the computation. Parameters, norms of weights, softmax and output are float32.
    """

    out_channels: int = 4
    channels: int = 192
    channel_mults: tuple[float, ...] = (1, 2, 3, 4)
    num_res_blocks: int = 3
    attention_resolutions: tuple[int, ...] = (16, 8)
    image_size: int | None = None
    head_channels: int = 64
    num_classes: int | None = None
    label_balance: float = 0.5
    concat_balance: float = 0.5
    residual_balance: float = 0.3
    attention_balance: float = 0.3
    clip_activations: float | None = 256.0
    resample_filter: tuple[float, ...] = (1, 1)
    uncertainty_channels: int = 128
    dropout: float = 0.0
    remat: str = "none"
    dtype: DTypeLike = "float32"

    # Of the parameters after an update: weights are learnt as directions (Karras et al. 2024, eq. 66).
    projection = staticmethod(normalize_weights)

    def setup(self) -> None:
        self.uncertainty = LogVariance(self.uncertainty_channels)

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array,
        class_labels: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The raw output F [B, H, W, out_channels], float32.

        Args:
          sample: [B, H, W, C], scaled to about unit variance.
          timestep: scalar or [B], c_noise of the preconditioning.
          class_labels: int32 [B], for a network with classes only; num_classes is the null class.
          train: applies dropout, from the PRNG stream "dropout".

        Raises:
          ValueError: fields or shapes that cannot work together, labels missing or unexpected.
        """
        batch, height, width, image_channels = sample.shape
        for size in (height, width):
            self.validate(size, image_channels)
        checks.check_labels(self.num_classes, class_labels)
        options = self._options()
        dtype, widths = options.dtype, self.level_channels()
        attention = checks.level_attention(self.image_size or height, len(widths), self.attention_resolutions)
        time = jnp.broadcast_to(jnp.asarray(timestep), (batch,))
        if self.is_initializing():
            self.log_variance(time)

        embedding = MPDense(max(widths), dtype, name="embed_noise")(MPFourier(widths[0], name="fourier")(time))
        if self.num_classes is not None:
            labels = jax.nn.one_hot(class_labels, self.num_classes) * math.sqrt(self.num_classes)
            label = MPDense(max(widths), dtype, name="embed_label")(labels)
            embedding = mp_sum(embedding, label, self.label_balance)
        embedding = mp_silu(embedding)

        make = rematerialized(EDM2Block, self.remat, (3,))
        # a channel of ones stands in for biases
        h = jnp.concatenate([sample, jnp.ones_like(sample[..., :1])], axis=-1)
        h = MPConv(widths[0], dtype, name="encoder_0_conv")(h)
        skips = [h]
        for level, features in enumerate(widths):
            name = f"encoder_{level}_"
            if level:
                block = make(h.shape[-1], "encoder", options, "down", name=name + "down")
                h = block(h, embedding, train)
                skips.append(h)
            for i in range(self.num_res_blocks):
                block = make(features, "encoder", options, attention=attention[level], name=f"{name}block{i}")
                h = block(h, embedding, train)
                skips.append(h)

        for level in reversed(range(len(widths))):
            name = f"decoder_{level}_"
            if level == len(widths) - 1:
                block = make(h.shape[-1], "decoder", options, attention=True, name=name + "in0")
                h = block(h, embedding, train)
                h = make(h.shape[-1], "decoder", options, name=name + "in1")(h, embedding, train)
            else:
                h = make(h.shape[-1], "decoder", options, "up", name=name + "up")(h, embedding, train)
            for i in range(self.num_res_blocks + 1):
                h = mp_concatenate(h, skips.pop(), self.concat_balance)
                block = make(widths[level], "decoder", options, attention=attention[level], name=f"{name}block{i}")
                h = block(h, embedding, train)
        gain = self.param("out_gain", nn.initializers.zeros, (), jnp.float32)
        h = MPConv(self.out_channels, dtype, name="out_conv")(h, gain)
        return h.astype(jnp.promote_types(dtype, jnp.float32))

    def log_variance(self, timestep: jax.Array) -> jax.Array:
        """The learnt uncertainty u of equation 21, [B] -> [B]: the logarithm of the loss to be expected at c_noise.

        It weights the loss, exp(-u) loss + u; call it as ``model.apply(variables, c_noise, method="log_variance")``.
        """
        return self.uncertainty(timestep)

    @nn.nowrap
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level, highest resolution first."""
        return checks.level_widths(self.channels, self.channel_mults)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work together or with images of that size."""
        checks.check_counts(
            self,
            ("out_channels", "channels", "num_res_blocks", "head_channels", "uncertainty_channels"),
            optional=("image_size", "num_classes"),
        )
        checks.check_image(image_size, channels)
        checks.check_dropout(self.dropout)
        checks.check_dtype(self.dtype)
        check_remat(self.remat)
        checks.check_resample_filter(self.resample_filter)
        for field in ("label_balance", "concat_balance", "residual_balance", "attention_balance"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field}={getattr(self, field)!r}: it must be from 0 to 1")
        if self.clip_activations is not None and not self.clip_activations > 0:
            raise ValueError(f"clip_activations={self.clip_activations!r}: it must be positive, or None")
        checks.check_levels(image_size, self.image_size, self.channel_mults, self.attention_resolutions)
        widths = self.level_channels()
        attention = checks.level_attention(self.image_size or image_size, len(widths), self.attention_resolutions)
        for width in {width for width, here in zip(widths, attention, strict=True) if here} | {widths[-1]}:
            if width % self.head_channels:
                raise ValueError(
                    f"head_channels={self.head_channels} does not divide the {width} channels of a level with attention"
                )

    @nn.nowrap
    def _options(self) -> EDM2Options:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(EDM2Options)}
        return EDM2Options(**{**values, "dtype": jnp.dtype(self.dtype), "resample_filter": tuple(self.resample_filter)})


class LogVariance(nn.Module):
    """u(c_noise), [B] -> [B], float32: Fourier features and one linear layer, so small that it cannot overfit.

    Usable beside any network whose loss it should weight.
    """

    features: int = 128

    @nn.compact
    def __call__(self, time: jax.Array) -> jax.Array:
        return MPDense(1, name="linear")(MPFourier(self.features, name="fourier")(time))[:, 0]


class EDM2Block(nn.Module):
    """Residual block of figure 21. On the way down the input is normalised pixel by pixel, on the way up it is not."""

    features: int
    way: Literal["encoder", "decoder"]
    options: EDM2Options
    resample: Resample | None = None
    attention: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        o, encoder = self.options, self.way == "encoder"
        if self.resample is not None:
            change = upsample if self.resample == "up" else downsample
            x = change(x, o.resample_filter)
        skip = MPDense(self.features, o.dtype, name="conv_skip") if x.shape[-1] != self.features else None
        if encoder:
            x = normalize(x if skip is None else skip(x), -1)

        h = MPConv(self.features, o.dtype, name="conv_res0")(mp_silu(x))
        gain = self.param("emb_gain", nn.initializers.zeros, (), jnp.float32)
        scale = MPDense(self.features, o.dtype, name="emb_linear")(embedding, gain) + 1
        h = mp_silu(h * scale[:, None, None, :])
        h = Dropout(o.dropout, deterministic=not train)(h)
        h = MPConv(self.features, o.dtype, name="conv_res1")(h)

        if not encoder and skip is not None:
            x = skip(x)
        x = computed_once(mp_sum(x, h, o.residual_balance))
        if self.attention:
            x = computed_once(mp_sum(x, self._attend(x), o.attention_balance))
        return x if o.clip_activations is None else jnp.clip(x, -o.clip_activations, o.clip_activations)

    def _attend(self, x: jax.Array) -> jax.Array:
        """Self-attention over all pixels, with normalised queries, keys and values (cosine attention)."""
        o = self.options
        batch, height, width, channels = x.shape
        tokens = x.reshape(batch, height * width, channels)
        by_head = (batch, height * width, -1, o.head_channels)
        q, k, v = (
            normalize(MPDense(channels, o.dtype, name=name)(tokens).reshape(by_head), -1).reshape(tokens.shape)
            for name in ("to_q", "to_k", "to_v")
        )
        attended = dot_product_attention(q, k, v, channels // o.head_channels)
        return MPDense(channels, o.dtype, name="attn_proj")(attended.reshape(x.shape))
