"""Autoencoders whose latents are vectors of a codebook (VQ-VAE, van den Oord et al. 2017, arXiv:1711.00937).

Rombach et al. 2022 (arXiv:2112.10752) quantise in the decoder: a diffusion model works on latents before that.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.autoencoder import Decoder, Encoder, convolutional_options, pointwise


class VQModel(nn.Module):
    """Images [B, H, W, C] in [-1, 1] <-> latents [B, H/f, W/f, code_channels], f = 2^(levels - 1).

    ``model.apply({"params": p}, image, method="encode")`` gives the latents, ``method="decode"`` the image of the
    nearest codes. Fields: num_codes, code_channels, of the codebook; the others as in
    :class:`diffusion_jax.models.autoencoder.AutoencoderKL`.
    """

    out_channels: int = 3
    latent_channels: int = 3
    widths: tuple[int, ...] = (128, 256, 512)
    num_res_blocks: int = 2
    mid_attention: bool = True
    num_codes: int = 8192
    code_channels: int = 3
    norm_groups: int = 32
    sample_size: int = 256
    scaling_factor: float = 0.18215
    force_upcast: bool = False
    remat: str = "none"
    dtype: DTypeLike = "float32"
    shift_factor = None  # there is none, whatever the autoencoder of a pipeline is asked

    def setup(self) -> None:
        counts = ("out_channels", "latent_channels", "num_res_blocks", "num_codes", "code_channels", "norm_groups")
        checks.check_counts(self, counts)
        checks.check_dtype(self.dtype)
        checks.check_norm_groups(self.widths, self.norm_groups)
        options = convolutional_options(self.norm_groups, self.remat, self.dtype)
        levels = (self.widths, self.num_res_blocks, self.mid_attention, options)
        self.encoder = Encoder(self.latent_channels, *levels)
        self.decoder = Decoder(self.out_channels, *levels)
        self.quant_conv = pointwise(self.code_channels, options)
        self.quantize = Codebook(self.num_codes, self.code_channels)
        self.post_quant_conv = pointwise(self.latent_channels, options)

    def __call__(self, sample: jax.Array) -> jax.Array:
        """The reconstruction of an image through its codes, [B, H, W, C] -> the same shape."""
        return self.decode(self.encode(sample))

    def encode(self, sample: jax.Array) -> jax.Array:
        """The latents before they are quantised, float32 [B, H/f, W/f, code_channels]."""
        checks.check_multiple(sample, self.factor)
        return self.quant_conv(self.encoder(sample)).astype(jnp.promote_types(self.dtype, jnp.float32))

    def decode(self, latents: jax.Array, quantize: bool = True) -> jax.Array:
        """The image, float32 [B, f H, f W, out_channels], of the codes nearest to latents, or of themselves."""
        codes = self.quantize(latents) if quantize else latents
        h = self.decoder(self.post_quant_conv(codes))
        return h.astype(jnp.promote_types(self.dtype, jnp.float32))

    @property
    def factor(self) -> int:
        """Pixels of an image for each of its latent, on a side."""
        return 2 ** (len(self.widths) - 1)


class Codebook(nn.Module):
    """Vectors [..., features] to the nearest of a table, whose gradient passes through as if nothing had been done."""

    size: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.uniform(2 / self.size)
        table = nn.Embed(self.size, self.features, embedding_init=init, name="embedding")
        codes = table.embedding.astype(jnp.promote_types(x.dtype, jnp.float32))
        products = jnp.einsum("...c,kc->...k", x.astype(codes.dtype), codes, precision=lax.Precision.HIGHEST)
        nearest = jnp.argmin(jnp.sum(jnp.square(codes), axis=-1) - 2 * products, axis=-1)
        return x + lax.stop_gradient(codes[nearest].astype(x.dtype) - x)
