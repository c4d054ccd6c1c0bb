"""The blocks of the U-Nets and autoencoders: residual block, attention, and the levels made of them.

Submodule names follow diffusers (``resnets_0/conv1`` is its ``resnets.0.conv1``), so that checkpoints map by rule.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models.attention import dot_product_attention
from diffusion_jax.models.layers import (
    ACTIVATIONS,
    Conv,
    Dense,
    Dropout,
    GroupNorm,
    Initialization,
    UpsampleConv,
    average_pool,
    upsample_nearest,
)
from diffusion_jax.models.once import computed_once
from diffusion_jax.models.remat import rematerialized
from diffusion_jax.models.transformer import SpatialTransformer, TransformerOptions


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What all blocks of one network share; the fields are explained in :class:`diffusion_jax.models.unet.UNet`.

    output_scale: residual blocks and attentions over pixels divide their sum by it.
    """

    num_heads: int
    head_channels: int | None
    resample: str
    downsample_padding: int
    scale_shift_norm: bool
    norm_groups: int
    norm_eps: float
    dropout: float
    initialization: Initialization
    dtype: DTypeLike
    remat: str = "none"
    activation: str = "silu"
    output_scale: float = 1.0

    def activate(self, x: jax.Array) -> jax.Array:
        return ACTIVATIONS[self.activation](x)

    def joined(self, x: jax.Array, h: jax.Array) -> jax.Array:
        """What a residual block or an attention gives: x + h, divided by output_scale."""
        return computed_once(x + h if self.output_scale == 1 else (x + h) / self.output_scale)

    def norm(self, name: str) -> GroupNorm:
        return GroupNorm(self.norm_groups, self.norm_eps, self.dtype, name=name)

    def conv(self, features: int, name: str, *, last: bool = False) -> Conv:
        return Conv(features, initialization=self.initialization, last=last, dtype=self.dtype, name=name)

    def dense(self, features: int, name: str, *, last: bool = False, use_bias: bool = True) -> Dense:
        return Dense(features, self.initialization, last, self.dtype, use_bias=use_bias, name=name)

    def resnet(self, features: int, name: str, resample: Literal["up", "down"] | None = None) -> nn.Module:
        block = rematerialized(ResnetBlock, self.remat, (3,))
        return block(features, self, resample, name=name)


class ResnetBlock(nn.Module):
    """Residual block with the time embedding between its two convolutions.

    Ho et al. 2020 add a projection of the embedding after the first convolution; with ``scale_shift_norm``
    (Nichol & Dhariwal 2021) it scales and shifts the second normalisation instead. ``resample`` puts a
    factor-two change of resolution inside, on both paths (ADM, Dhariwal & Nichol 2021). Without an embedding
    (autoencoders) the block has no projection.
    """

    features: int
    options: BlockOptions
    resample: Literal["up", "down"] | None = None

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array | None, train: bool) -> jax.Array:
        o = self.options
        h = o.activate(o.norm("norm1")(x))
        if self.resample is not None:
            change = upsample_nearest if self.resample == "up" else average_pool
            x, h = change(x), change(h)
        h = o.conv(self.features, "conv1")(h)

        if embedding is None:
            h = o.norm("norm2")(h)
        else:
            width = 2 * self.features if o.scale_shift_norm else self.features
            shift = o.dense(width, "time_emb_proj")(o.activate(embedding))[:, None, None, :]
            if o.scale_shift_norm:
                scale, shift = jnp.split(shift, 2, axis=-1)
                h = o.norm("norm2")(h) * (1 + scale) + shift
            else:
                h = o.norm("norm2")(h + shift)
        h = Dropout(o.dropout, deterministic=not train)(o.activate(h))
        h = o.conv(self.features, "conv2", last=True)(h)

        if x.shape[-1] != self.features:
            # a 1x1 convolution (the "nin" of Ho et al.)
            x = Conv(
                self.features,
                kernel_size=1,
                padding=0,
                initialization=o.initialization,
                dtype=o.dtype,
                name="conv_shortcut",
            )(x)
        return o.joined(x, h)


class Attention(nn.Module):
    """Residual self-attention over all pixels: [B, H, W, C] -> the same, scores divided by sqrt(head width)."""

    options: BlockOptions
    normalize: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        o = self.options
        batch, height, width, channels = x.shape
        heads = o.num_heads if o.head_channels is None else channels // o.head_channels
        h = o.norm("group_norm")(x) if self.normalize else x
        h = h.reshape(batch, height * width, channels)
        q, k, v = (o.dense(channels, name)(h) for name in ("to_q", "to_k", "to_v"))
        h = dot_product_attention(q, k, v, heads)
        return o.joined(x, o.dense(channels, "to_out_0", last=True)(h.reshape(x.shape)))


def attend(
    h: jax.Array,
    context: jax.Array | None,
    train: bool,
    options: BlockOptions,
    transformer: TransformerOptions | None,
    name: str,
    normalize: bool = True,
) -> jax.Array:
    """The attention of a level, a submodule of the caller: over the pixels, or a transformer with the context."""
    if transformer is None:
        return Attention(options, normalize, name=name)(h)
    assert context is not None
    return SpatialTransformer(transformer, name=name)(h, context, train)


class Downsample(nn.Module):
    """Halves the resolution by a strided 3x3 convolution.

    Padding 0 pads one row and column at the bottom and right only, as TensorFlow's SAME does for even sizes
    (Ho et al. 2020); padding 1 pads all sides (PyTorch code bases).
    """

    features: int
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        o = self.options
        return Conv(
            self.features,
            stride=2,
            padding=((0, 1), (0, 1)) if o.downsample_padding == 0 else 1,
            initialization=o.initialization,
            dtype=o.dtype,
            name="conv",
        )(x)


class Upsample(nn.Module):
    """Doubles the resolution: nearest neighbour, then a 3x3 convolution."""

    features: int
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        o = self.options
        return UpsampleConv(self.features, initialization=o.initialization, dtype=o.dtype, name="conv")(x)


class DownBlock(nn.Module):
    """One level of the way down; returns its output and what the way up will take from it, in order.

    With ``transformer`` the attention is a :class:`SpatialTransformer` that also looks at the context [B, M, D].
    """

    features: int
    num_blocks: int
    attention: bool
    downsample: bool
    options: BlockOptions
    transformer: TransformerOptions | None = None

    @nn.compact
    def __call__(
        self, h: jax.Array, embedding: jax.Array | None, train: bool, context: jax.Array | None = None
    ) -> tuple[jax.Array, list[jax.Array]]:
        skips = []
        for i in range(self.num_blocks):
            h = self.options.resnet(self.features, f"resnets_{i}")(h, embedding, train)
            if self.attention:
                h = attend(h, context, train, self.options, self.transformer, f"attentions_{i}")
            skips.append(h)
        if self.downsample:
            if self.options.resample == "resblock":
                h = self.options.resnet(self.features, "downsamplers_0", "down")(h, embedding, train)
            else:
                h = Downsample(self.features, self.options, name="downsamplers_0")(h)
            skips.append(h)
        return h, skips


class MidBlock(nn.Module):
    """Residual block, attention, residual block at the lowest resolution; with num_blocks=1 the first alone."""

    features: int
    attention: bool
    attention_norm: bool
    options: BlockOptions
    transformer: TransformerOptions | None = None
    num_blocks: int = 2

    @nn.compact
    def __call__(
        self, h: jax.Array, embedding: jax.Array | None, train: bool, context: jax.Array | None = None
    ) -> jax.Array:
        h = self.options.resnet(self.features, "resnets_0")(h, embedding, train)
        for i in range(1, self.num_blocks):
            if self.attention:
                name = f"attentions_{i - 1}"
                h = attend(h, context, train, self.options, self.transformer, name, self.attention_norm)
            h = self.options.resnet(self.features, f"resnets_{i}")(h, embedding, train)
        return h


class UpBlock(nn.Module):
    """One level of the way up; takes one skip from the end of ``skips`` for each of its blocks, if there are skips."""

    features: int
    num_blocks: int
    attention: bool
    upsample: bool
    options: BlockOptions
    transformer: TransformerOptions | None = None

    @nn.compact
    def __call__(
        self,
        h: jax.Array,
        skips: list[jax.Array] | None,
        embedding: jax.Array | None,
        train: bool,
        context: jax.Array | None = None,
    ) -> jax.Array:
        for i in range(self.num_blocks):
            if skips is not None:
                h = jnp.concatenate([h, skips.pop()], axis=-1)
            h = self.options.resnet(self.features, f"resnets_{i}")(h, embedding, train)
            if self.attention:
                h = attend(h, context, train, self.options, self.transformer, f"attentions_{i}")
        if not self.upsample:
            return h
        if self.options.resample == "resblock":
            return self.options.resnet(self.features, "upsamplers_0", "up")(h, embedding, train)
        return Upsample(self.features, self.options, name="upsamplers_0")(h)
