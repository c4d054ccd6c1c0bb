"""The tiny autoencoder (TAESD, github.com/madebyollin/taesd): a distilled stand-in for Stable Diffusion's.

Plain convolutions and ReLUs, fast enough to show a picture at every sampling step. Its latents are those that the
diffusion model works on: no factor or shift in between.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.layers import Conv, UpsampleConv


class AutoencoderTiny(nn.Module):
    """Images [B, H, W, C] in [-1, 1] <-> latents [B, H/f, W/f, latent_channels], f = 2^(stages - 1).

    ``model.apply({"params": p}, image, method="encode")`` gives the latents, ``method="decode"`` the image.

    Fields; the defaults are TAESD's: out_channels, latent_channels; encoder_widths and decoder_widths, channels of
    each stage in the order that they are passed; encoder_blocks and decoder_blocks, residual blocks of each;
    latent_magnitude and latent_shift, by which latents become images of [0, 1]; scaling_factor and shift_factor, as
    for :class:`diffusion_jax.models.autoencoder.AutoencoderKL`; dtype of the computation (parameters and output are
    float32).
    """

    out_channels: int = 3
    latent_channels: int = 4
    encoder_widths: tuple[int, ...] = (64, 64, 64, 64)
    decoder_widths: tuple[int, ...] = (64, 64, 64, 64)
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3
    latent_shift: float = 0.5
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    dtype: DTypeLike = "float32"

    def setup(self) -> None:
        checks.check_counts(self, ("out_channels", "latent_channels"))
        checks.check_dtype(self.dtype)
        for side in ("encoder", "decoder"):
            widths, blocks = getattr(self, f"{side}_widths"), getattr(self, f"{side}_blocks")
            # the strided and upsampling convolutions keep the number of channels
            if len(widths) != len(blocks) or len(set(widths)) != 1:
                raise ValueError(
                    f"{side}_widths={widths}, {side}_blocks={blocks}: they must name the same number of stages, all of"
                    " one width"
                )
        self.encoder = Encoder(self.latent_channels, self.encoder_widths, self.encoder_blocks, self.dtype)
        self.decoder = Decoder(self.out_channels, self.decoder_widths, self.decoder_blocks, self.dtype)

    def __call__(self, sample: jax.Array) -> jax.Array:
        """The reconstruction of an image, [B, H, W, C] -> the same shape."""
        return self.decode(self.encode(sample))

    def encode(self, sample: jax.Array) -> jax.Array:
        """The latents, float32 [B, H/f, W/f, latent_channels]."""
        checks.check_multiple(sample, self.factor)
        return self.encoder((sample + 1) / 2).astype(jnp.promote_types(self.dtype, jnp.float32))

    def decode(self, latents: jax.Array) -> jax.Array:
        """The image, float32 [B, f H, f W, out_channels]; latents are squashed to [-3, 3]."""
        h = self.decoder(3 * jnp.tanh(latents / 3)).astype(jnp.promote_types(self.dtype, jnp.float32))
        return 2 * h - 1

    @property
    def factor(self) -> int:
        """Pixels of an image for each of its latent, on a side."""
        return 2 ** (len(self.encoder_widths) - 1)


class Encoder(nn.Module):
    """Stages of residual blocks, each after the first opened by a strided convolution."""

    out_channels: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            first = stage == 0
            h = _conv(width, f"conv_{stage}", self.dtype, stride=1 if first else 2, use_bias=first)(h)
            for i in range(blocks):
                h = Block(width, self.dtype, name=f"block_{stage}_{i}")(h)
        return _conv(self.out_channels, "conv_out", self.dtype)(h)


class Decoder(nn.Module):
    """Stages of residual blocks, each but the last closed by a doubling of the resolution."""

    out_channels: int
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        h = nn.relu(_conv(self.widths[0], "conv_in", self.dtype)(h))
        for stage, (width, blocks) in enumerate(zip(self.widths, self.blocks, strict=True)):
            for i in range(blocks):
                h = Block(width, self.dtype, name=f"block_{stage}_{i}")(h)
            if stage < len(self.widths) - 1:
                h = UpsampleConv(
                    width, initialization="pytorch", dtype=self.dtype, use_bias=False, name=f"conv_{stage}"
                )(h)
        return _conv(self.out_channels, "conv_out", self.dtype)(h)


class Block(nn.Module):
    """Three convolutions beside the identity, and a ReLU."""

    features: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(_conv(self.features, "conv_0", self.dtype)(x))
        h = nn.relu(_conv(self.features, "conv_1", self.dtype)(h))
        return nn.relu(x.astype(h.dtype) + _conv(self.features, "conv_2", self.dtype)(h))


def _conv(features: int, name: str, dtype: DTypeLike, stride: int = 1, use_bias: bool = True) -> Conv:
    return Conv(features, stride=stride, initialization="pytorch", dtype=dtype, use_bias=use_bias, name=name)
