"""The transformer inside the U-Nets of Stable Diffusion: self-attention, attention to the text, gated MLP.

Rombach et al. 2022 (arXiv:2112.10752), section 3.3 and appendix E.2. Submodule names follow diffusers'
Transformer2DModel, so that checkpoints map by rule.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models.attention import attention_map, dot_product_attention
from diffusion_jax.models.layers import Conv, Dense, Dropout, GroupNorm, Initialization
from diffusion_jax.models.once import computed_once
from diffusion_jax.models.scanned import apply_layers

ATTENTION_MAPS = "attention"  # collection of the cross-attention maps


@dataclasses.dataclass(frozen=True)
class TransformerOptions:
    """What the transformers of one level share.

    Attributes:
      depth: transformer blocks behind each residual block.
      num_heads: of the attentions.
      linear_projection: whether the projections around the blocks are stored as matrices (Stable Diffusion 2) or as
        1x1 convolutions (1); the function is the same.
      norm_groups: of the normalisation before the blocks; its epsilon is 1e-6.
      dropout: behind the attentions and inside the MLP, when training.
      initialization: see :mod:`diffusion_jax.models.layers`.
      remat: what the backward pass keeps of each block, see :mod:`diffusion_jax.models.remat`.
      dtype: of the computation.
      scan_layers: the blocks are one loop over stacked parameters, see :mod:`diffusion_jax.models.scanned`.
      text_only: the first attention of a block looks at the context, too, instead of the pixels.
    """

    depth: int
    num_heads: int
    linear_projection: bool
    norm_groups: int
    dropout: float
    initialization: Initialization
    remat: str
    dtype: DTypeLike
    scan_layers: bool = False
    text_only: bool = False

    def dense(self, features: int, name: str, *, use_bias: bool = True, last: bool = False) -> Dense:
        return Dense(features, self.initialization, last, self.dtype, use_bias=use_bias, name=name)

    def norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(1e-5, use_fast_variance=False, dtype=self.dtype, name=name)


class SpatialTransformer(nn.Module):
    """Residual transformer over all pixels: x [B, H, W, C], context [B, M, D] -> [B, H, W, C]."""

    options: TransformerOptions

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array, train: bool) -> jax.Array:
        o = self.options
        channels = x.shape[-1]

        def project(name: str, last: bool = False) -> nn.Module:
            if o.linear_projection:
                return o.dense(channels, name, last=last)
            return Conv(channels, 1, 1, 0, o.initialization, last, o.dtype, name=name)

        h = GroupNorm(o.norm_groups, 1e-6, o.dtype, name="norm")(x)
        h = project("proj_in")(h).reshape(x.shape[0], -1, channels)
        if o.scan_layers and self.is_mutable_collection(ATTENTION_MAPS) and not self.is_initializing():
            raise ValueError("scan_layers=True: a loop over layers keeps no attention maps; hub.unrolled undoes it")
        h = apply_layers(
            TransformerBlock,
            [(o,)] * o.depth,
            "transformer_blocks",
            lambda block, h, _: block(h, context, train),
            h,
            scan=o.scan_layers,
            remat=o.remat,
            static_argnums=(3,),
        )
        return x + project("proj_out", last=True)(h.reshape(x.shape))


class TransformerBlock(nn.Module):
    """Three residual branches, each behind a layer normalisation: tokens [B, N, C], context [B, M, D] -> [B, N, C]."""

    options: TransformerOptions

    @nn.compact
    def __call__(self, h: jax.Array, context: jax.Array, train: bool) -> jax.Array:
        o = self.options
        tokens = o.norm("norm1")(h)
        h = computed_once(h + Attention(o, name="attn1")(tokens, context if o.text_only else tokens, train))
        h = computed_once(h + CrossAttention(o, name="attn2")(o.norm("norm2")(h), context, train))
        return computed_once(h + FeedForward(o, name="ff")(o.norm("norm3")(h), train))


class Attention(nn.Module):
    """Multi-head attention of tokens [B, N, C] to a context [B, M, D] -> [B, N, C]."""

    options: TransformerOptions

    @nn.compact
    def __call__(self, tokens: jax.Array, context: jax.Array, train: bool) -> jax.Array:
        o, channels = self.options, tokens.shape[-1]
        q = o.dense(channels, "to_q", use_bias=False)(tokens)
        k = o.dense(channels, "to_k", use_bias=False)(context)
        v = o.dense(channels, "to_v", use_bias=False)(context)
        self.record(q, k)
        h = o.dense(channels, "to_out_0")(dot_product_attention(q, k, v, o.num_heads))
        return Dropout(o.dropout, deterministic=not train)(h)

    def record(self, q: jax.Array, k: jax.Array) -> None:
        """Self-attention keeps no maps: they are as large as the square of the image."""


class CrossAttention(Attention):
    """Attention to the text; its map [B, N, M], the mean over heads, is sown where the collection is mutable.

    ``model.apply(..., mutable=["attention"])`` asks for the maps; without it nothing is computed for them.
    """

    def record(self, q: jax.Array, k: jax.Array) -> None:
        if self.is_mutable_collection(ATTENTION_MAPS) and not self.is_initializing():
            self.sow(ATTENTION_MAPS, "map", attention_map(q, k, self.options.num_heads))


class FeedForward(nn.Module):
    """The MLP, four times as wide inside, gated by a GELU (GEGLU, Shazeer 2020)."""

    options: TransformerOptions

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> jax.Array:
        o, channels = self.options, h.shape[-1]
        h = GEGLU(4 * channels, o, name="net_0")(h)
        h = Dropout(o.dropout, deterministic=not train)(h)
        return o.dense(channels, "net_2")(h)


class GEGLU(nn.Module):
    """[..., C] -> [..., features]: a linear map times the GELU of another."""

    features: int
    options: TransformerOptions

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        h, gate = jnp.split(self.options.dense(2 * self.features, "proj")(h), 2, axis=-1)
        return h * nn.gelu(gate, approximate=False)
