"""Blocks of transformers on two streams, image and text, that attend to both together (MMDiT).

Esser et al. 2024 (arXiv:2403.03206), figure 2: each stream has its own weights; only the attention joins them. Stable
Diffusion 3.5 adds a second attention within the image, Flux rotary positions. Submodule names follow diffusers'
JointTransformerBlock, so that checkpoints map by rule.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models.attention import dot_product_attention
from diffusion_jax.models.layers import Dense, Initializer, timestep_embedding
from diffusion_jax.models.once import computed_once
from diffusion_jax.models.unet import TimeEmbedding

FREQUENCIES = 256  # of the time embedding, sines and cosines
EPSILON = 1e-6  # of all normalisations
Rotation = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class JointOptions:
    """What all blocks of one network share: heads and their width, RMS normalisation of queries and keys, dtype."""

    num_heads: int
    head_width: int
    qk_norm: bool
    dtype: DTypeLike

    @property
    def width(self) -> int:
        return self.num_heads * self.head_width

    def dense(self, features: int, name: str, init: Initializer | None = None, use_bias: bool = True) -> Dense:
        return Dense(features, "ddpm", False, self.dtype, init, use_bias, name=name)

    def norm(self, x: jax.Array) -> jax.Array:
        """Layer normalisation without parameters."""
        return nn.LayerNorm(
            EPSILON, use_bias=False, use_scale=False, use_fast_variance=False, dtype=self.dtype
        )(x)  # fmt: skip


class TimeTextEmbedding(nn.Module):
    """Time, pooled text and, for guidance-distilled networks, the guidance scale, as one vector [B, width].

    time and guidance are [B], on a scale of 0 to 1000.
    """

    options: JointOptions

    @nn.compact
    def __call__(self, time: jax.Array, pooled: jax.Array, guidance: jax.Array | None = None) -> jax.Array:
        o = self.options
        embedding = TimeEmbedding(o.width, o, name="text_embedder")(pooled)
        numbers = {"timestep_embedder": time} | ({} if guidance is None else {"guidance_embedder": guidance})
        for name, number in numbers.items():
            sines = timestep_embedding(number, FREQUENCIES, flip_sin_to_cos=True, freq_shift=0.0)
            embedding = embedding + TimeEmbedding(o.width, o, name=name)(sines)
        return embedding


class Modulation(nn.Module):
    """The condition as shifts, scales and gates: [B, width] -> ``parts`` of [B, 1, width]; zero at the start."""

    parts: int
    options: JointOptions

    @nn.compact
    def __call__(self, condition: jax.Array) -> list[jax.Array]:
        o = self.options
        h = o.dense(self.parts * o.width, "linear", nn.initializers.zeros)(nn.silu(condition))
        return jnp.split(h[:, None, :], self.parts, axis=-1)


class FeedForward(nn.Module):
    """The MLP, four times as wide inside: [B, N, width] -> the same."""

    options: JointOptions

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        o = self.options
        h = Projection(4 * o.width, o, name="net_0")(h)
        return o.dense(o.width, "net_2")(nn.gelu(h, approximate=True))


class Projection(nn.Module):
    """A dense layer that has a name of its own in the files."""

    features: int
    options: JointOptions

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        return self.options.dense(self.features, "proj")(h)


class JointAttention(nn.Module):
    """Attention over the tokens of the image [B, N, width] and, if given, of the text [B, M, width] together.

    Fields: project, whether the image's result goes through a last layer; project_context, whether there is a result
    for the text. ``rotation`` holds cosines and sines [N + M, head_width / 2], the image's tokens first.
    """

    options: JointOptions
    project: bool = True
    project_context: bool = True

    @nn.compact
    def __call__(
        self, tokens: jax.Array, context: jax.Array | None = None, rotation: Rotation | None = None
    ) -> tuple[jax.Array, jax.Array | None]:
        o, length = self.options, tokens.shape[1]
        q, k, v = self._queries_keys_values(tokens, ("to_q", "to_k", "to_v"), ("norm_q", "norm_k"))
        if context is not None:
            names = ("add_q_proj", "add_k_proj", "add_v_proj"), ("norm_added_q", "norm_added_k")
            added = self._queries_keys_values(context, *names)
            q, k, v = (jnp.concatenate(pair, axis=1) for pair in zip((q, k, v), added, strict=True))
        if rotation is not None:
            q, k = (rotate(x, rotation) for x in (q, k))
        q, k, v = (x.reshape(*x.shape[:2], o.width) for x in (q, k, v))
        h = dot_product_attention(q, k, v, o.num_heads)
        image = o.dense(o.width, "to_out_0")(h[:, :length]) if self.project else h[:, :length]
        if context is None or not self.project_context:
            return image, None
        return image, o.dense(o.width, "to_add_out")(h[:, length:])

    def _queries_keys_values(
        self, h: jax.Array, layers: tuple[str, str, str], norms: tuple[str, str]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Each [B, N, heads, head width]; queries and keys normalised."""
        o = self.options
        q, k, v = (
            o.dense(o.width, name)(h).reshape(*h.shape[:2], o.num_heads, o.head_width) for name in layers
        )  # fmt: skip
        if o.qk_norm:
            q, k = (nn.RMSNorm(EPSILON, dtype=o.dtype, name=name)(x) for x, name in zip((q, k), norms, strict=True))
        return q, k, v


class JointBlock(nn.Module):
    """One block of both streams; each residual is shifted, scaled and gated by the condition (adaLN-Zero).

    Fields: dual_attention, a second attention within the image (Stable Diffusion 3.5); last, the text is not needed
    any more and leaves the network.
    """

    options: JointOptions
    dual_attention: bool = False
    last: bool = False

    @nn.compact
    def __call__(
        self, h: jax.Array, context: jax.Array, condition: jax.Array, rotation: Rotation | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """h: tokens of the image [B, N, width]; context: of the text [B, M, width]; condition: [B, width]."""
        o = self.options
        modulation = Modulation(9 if self.dual_attention else 6, o, name="norm1")(condition)
        shift, scale, gate, *mlp = modulation[:6]
        normalized, normalized_context = o.norm(h), o.norm(context)
        tokens = normalized * (1 + scale) + shift
        if self.last:
            context_scale, context_shift = Modulation(2, o, name="norm1_context")(condition)
            context_gate, context_mlp = None, []
        else:
            modulation_context = Modulation(6, o, name="norm1_context")(condition)
            context_shift, context_scale, context_gate, *context_mlp = modulation_context
        text = normalized_context * (1 + context_scale) + context_shift

        attended, attended_text = JointAttention(o, project_context=not self.last, name="attn")(tokens, text, rotation)
        h = computed_once(h + gate * attended)
        if self.dual_attention:
            shift, scale, gate = modulation[6:]
            attended, _ = JointAttention(o, name="attn2")(normalized * (1 + scale) + shift)
            h = computed_once(h + gate * attended)
        h = self._mlp(h, mlp, "ff")
        if context_gate is None or attended_text is None:
            return h, context
        return h, self._mlp(computed_once(context + context_gate * attended_text), context_mlp, "ff_context")

    def _mlp(self, h: jax.Array, modulation: list[jax.Array], name: str) -> jax.Array:
        shift, scale, gate = modulation
        return computed_once(
            h + gate * FeedForward(self.options, name=name)(self.options.norm(h) * (1 + scale) + shift)
        )


class FinalNorm(nn.Module):
    """The normalisation before the last layer, scaled and shifted by the condition."""

    options: JointOptions

    @nn.compact
    def __call__(self, h: jax.Array, condition: jax.Array) -> jax.Array:
        o = self.options
        modulation = o.dense(2 * o.width, "linear", nn.initializers.zeros)(nn.silu(condition))
        scale, shift = jnp.split(modulation[:, None, :], 2, axis=-1)
        return o.norm(h) * (1 + scale) + shift


def rotate(x: jax.Array, rotation: Rotation) -> jax.Array:
    """Rotary positions (Su et al. 2021): each pair of neighbouring channels of [B, N, heads, width] turned by its
    angle, cosines and sines [N, width / 2].
    """
    cos, sin = (part[None, :, None, :] for part in rotation)
    pairs = x.astype(jnp.promote_types(x.dtype, jnp.float32)).reshape(*x.shape[:-1], -1, 2)
    first, second = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
