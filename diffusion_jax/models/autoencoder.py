"""The autoencoders of latent diffusion: images to latents of an eighth of their sides, and back.

Rombach et al. 2022 (arXiv:2112.10752), appendix G: a convolutional encoder and decoder with one attention at the
lowest resolution, around a latent that is a Gaussian for each pixel (KL-regularised). Stable Diffusion's has 4
channels, the one of SD 3 and Flux 16.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.blocks import BlockOptions, DownBlock, MidBlock, UpBlock
from diffusion_jax.models.layers import Conv
from diffusion_jax.models.tiling import one_by_one, tiled

MIN_LOGVAR, MAX_LOGVAR = -30.0, 20.0


class AutoencoderKL(nn.Module):
    """Images [B, H, W, C] in [-1, 1] <-> latents [B, H/f, W/f, latent_channels], f = 2^(levels - 1).

    Use it by method: ``vae.apply({"params": p}, image, method="encode")`` gives (mean, logvar), ``method="decode"``
    gives the image. A diffusion model works on (latent - shift_factor) * scaling_factor, which is left to the caller.

    Fields; the defaults are Stable Diffusion's, 83,653,863 parameters:

    - out_channels, latent_channels; widths: channels of each level, highest resolution first.
    - num_res_blocks: of a level of the encoder; the decoder has one more.
    - mid_attention: between the two blocks at the lowest resolution.
    - use_quant_conv, use_post_quant_conv: 1x1 convolutions behind the encoder and before the decoder; not in SD 3 and
      Flux.
    - norm_groups: of the group normalisations; their epsilon is 1e-6.
    - sample_size: image size of its training; scaling_factor, shift_factor: see above. latents_mean, latents_std: of
      each channel, where a diffusion model works on (latent - mean) / std * scaling_factor instead.
    - force_upcast: whether it is meant to run in float32 beside a half-precision network (SDXL's overflows float16).
    - tile_size: images with a side larger than so many pixels go through in tiles that overlap by a quarter
      (:mod:`diffusion_jax.models.tiling`); None takes every image whole.
    - slicing: images of a batch go through one after the other.
    - remat: what the backward pass keeps of residual blocks, see :mod:`diffusion_jax.models.remat`; dtype: of the
      computation. Parameters, normalisation statistics, softmax and output are float32.
    """

    out_channels: int = 3
    latent_channels: int = 4
    widths: tuple[int, ...] = (128, 256, 512, 512)
    num_res_blocks: int = 2
    mid_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    norm_groups: int = 32
    sample_size: int = 512
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    force_upcast: bool = True
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    tile_size: int | None = None
    slicing: bool = False
    remat: str = "none"
    dtype: DTypeLike = "float32"

    def setup(self) -> None:
        self._validate()
        options = convolutional_options(self.norm_groups, self.remat, self.dtype)
        levels = (self.widths, self.num_res_blocks, self.mid_attention, options)
        self.encoder = Encoder(2 * self.latent_channels, *levels)
        self.decoder = Decoder(self.out_channels, *levels)
        if self.use_quant_conv:
            self.quant_conv = pointwise(2 * self.latent_channels, options)
        if self.use_post_quant_conv:
            self.post_quant_conv = pointwise(self.latent_channels, options)

    def __call__(self, sample: jax.Array) -> jax.Array:
        """The reconstruction of an image from the mean of its latent, [B, H, W, C] -> the same shape."""
        return self.decode(self.encode(sample)[0])

    def encode(self, sample: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The Gaussian of the latent: mean and log variance, each float32 [B, H/f, W/f, latent_channels]."""
        checks.check_multiple(sample, self.factor)
        tile = None if self.tile_size is None else (self.tile_size, self.tile_size // self.factor)
        mean, logvar = jnp.split(self._run("encode_whole", sample, tile), 2, axis=-1)
        return mean, jnp.clip(logvar, MIN_LOGVAR, MAX_LOGVAR)

    def decode(self, latents: jax.Array) -> jax.Array:
        """The image, float32 [B, f H, f W, out_channels], of latents [B, H, W, latent_channels]."""
        tile = None if self.tile_size is None else (self.tile_size // self.factor, self.tile_size)
        return self._run("decode_whole", latents, tile)

    def encode_whole(self, sample: jax.Array) -> jax.Array:
        """Mean and log variance side by side, without tiles."""
        h = self.encoder(sample)
        return _at_least_float32(self.quant_conv(h) if self.use_quant_conv else h)

    def decode_whole(self, latents: jax.Array) -> jax.Array:
        """As :meth:`decode`, without tiles."""
        return _at_least_float32(self.decoder(self.post_quant_conv(latents) if self.use_post_quant_conv else latents))

    @property
    def factor(self) -> int:
        """Pixels of an image for each of its latent, on a side."""
        return 2 ** (len(self.widths) - 1)

    def _run(self, method: str, x: jax.Array, tile: tuple[int, int] | None) -> jax.Array:
        """A method on x, in tiles (their sides before and after it) and image by image where that was asked for."""
        if self.is_initializing():
            return getattr(self, method)(x)
        module, variables = self.unbind()  # loops want a pure function

        def whole(part: jax.Array) -> jax.Array:
            return module.apply(variables, part, method=method)  # pyright: ignore[reportReturnType]

        def network(part: jax.Array) -> jax.Array:
            if tile is None or max(part.shape[1:3]) <= tile[0]:
                return whole(part)
            return tiled(whole, part, tile=tile[0], tile_out=tile[1])

        return one_by_one(network, x) if self.slicing and x.shape[0] > 1 else network(x)

    @nn.nowrap
    def _validate(self) -> None:
        checks.check_counts(
            self,
            ("out_channels", "latent_channels", "num_res_blocks", "norm_groups", "sample_size"),
            optional=("tile_size",),
        )
        checks.check_dtype(self.dtype)
        checks.check_norm_groups(self.widths, self.norm_groups)
        for field in ("latents_mean", "latents_std"):
            values = getattr(self, field)
            if values is not None and (len(values) != self.latent_channels or not np.isfinite(values).all()):
                raise ValueError(f"{field}={values}: it must hold {self.latent_channels} numbers, one for each channel")
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ValueError("latents_mean and latents_std: give both or neither")
        if self.latents_std is not None and min(self.latents_std) <= 0:
            raise ValueError(f"latents_std={self.latents_std}: they must be positive")
        if self.tile_size is not None and self.tile_size % (4 * self.factor):
            raise ValueError(f"tile_size={self.tile_size}: it must be a multiple of {4 * self.factor}")


def convolutional_options(norm_groups: int, remat: str, dtype: DTypeLike) -> BlockOptions:
    """The blocks as the autoencoders of latent diffusion have them."""
    return BlockOptions(
        num_heads=1,
        head_channels=None,
        resample="conv",
        downsample_padding=0,
        scale_shift_norm=False,
        norm_groups=norm_groups,
        norm_eps=1e-6,
        dropout=0.0,
        initialization="pytorch",
        dtype=jnp.dtype(dtype),
        remat=remat,
    )


class Encoder(nn.Module):
    """[B, H, W, C] -> [B, H/f, W/f, out_channels]."""

    out_channels: int
    widths: tuple[int, ...]
    num_res_blocks: int
    mid_attention: bool
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        o, last = self.options, len(self.widths) - 1
        h = o.conv(self.widths[0], "conv_in")(x)
        for level, width in enumerate(self.widths):
            block = DownBlock(width, self.num_res_blocks, False, level < last, o, name=f"down_blocks_{level}")
            h, _ = block(h, None, False)
        h = MidBlock(self.widths[-1], self.mid_attention, True, o, name="mid_block")(h, None, False)
        h = nn.silu(o.norm("conv_norm_out")(h))
        return o.conv(self.out_channels, "conv_out")(h)


class Decoder(nn.Module):
    """[B, H, W, C] -> [B, f H, f W, out_channels]."""

    out_channels: int
    widths: tuple[int, ...]
    num_res_blocks: int
    mid_attention: bool
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        o, last = self.options, len(self.widths) - 1
        h = o.conv(self.widths[-1], "conv_in")(x)
        h = MidBlock(self.widths[-1], self.mid_attention, True, o, name="mid_block")(h, None, False)
        for i, width in enumerate(reversed(self.widths)):
            block = UpBlock(width, self.num_res_blocks + 1, False, i < last, o, name=f"up_blocks_{i}")
            h = block(h, None, None, False)
        h = nn.silu(o.norm("conv_norm_out")(h))
        return o.conv(self.out_channels, "conv_out")(h)


def pointwise(features: int, options: BlockOptions) -> Conv:
    return Conv(features, 1, 1, 0, options.initialization, dtype=options.dtype)


def _at_least_float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
