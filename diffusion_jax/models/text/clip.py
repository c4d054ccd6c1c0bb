"""CLIP's text encoder (Radford et al. 2021, arXiv:2103.00020), and OpenCLIP's larger ones.

                        width   layers   heads   mlp   activation   projection
SD 1.x, SDXL's first      768       12      12  3072   quick_gelu   none (SD 3's: 768)
SD 2.x                   1024       23      16  4096   gelu         none
SDXL's second            1280       32      20  5120   gelu         1280

Submodule names follow transformers' CLIPTextModel.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.layers import Dense
from diffusion_jax.models.text.features import TextFeatures, attend

# Configs from before transformers 4.31 state this end token, which the vocabulary has elsewhere.
LEGACY_END = 2


def quick_gelu(x: jax.Array) -> jax.Array:
    """OpenAI's x sigmoid(1.702 x)."""
    return x * nn.sigmoid(1.702 * x)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": lambda x: nn.gelu(x, approximate=False)}


@dataclasses.dataclass(frozen=True)
class LayerOptions:
    """What all layers share; the fields are those of :class:`CLIPText`."""

    num_heads: int
    mlp_width: int
    activation: str
    norm_eps: float
    dtype: DTypeLike

    def dense(self, features: int, name: str) -> Dense:
        return Dense(features, "pytorch", False, self.dtype, name=name)

    def norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(self.norm_eps, use_fast_variance=False, dtype=self.dtype, name=name)


class CLIPText(nn.Module):
    """Token numbers to features; each token sees those before it.

    Fields; the defaults are Stable Diffusion 1's:

    - vocab_size, max_length: rows of the embeddings of tokens and positions.
    - width, depth, num_heads, mlp_width: of the transformer. activation: "quick_gelu" or "gelu".
    - projection: length of the projected vector; None leaves the projection out.
    - end_token: the first of these is where the pooled vector is read. 2 stands for the largest number in the text, as
      old configs mean it.
    - norm_eps: of the normalisations. dtype: of the computation; normalisation statistics, softmax and results are
      float32.
    """

    vocab_size: int = 49408
    max_length: int = 77
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_width: int = 3072
    activation: str = "quick_gelu"
    projection: int | None = None
    end_token: int = 49407
    norm_eps: float = 1e-5
    dtype: DTypeLike = "float32"

    def setup(self) -> None:
        checks.check_counts(
            self,
            ("vocab_size", "max_length", "width", "depth", "num_heads", "mlp_width"),
            optional=("projection",),
        )
        checks.check_choice("activation", self.activation, tuple(ACTIVATIONS))
        checks.check_dtype(self.dtype)
        if self.width % self.num_heads:
            raise ValueError(f"width={self.width}: it must be a multiple of num_heads={self.num_heads}")
        o = LayerOptions(self.num_heads, self.mlp_width, self.activation, self.norm_eps, jnp.dtype(self.dtype))
        self.token_embedding = nn.Embed(self.vocab_size, self.width, dtype=o.dtype)
        self.position_embedding = nn.Embed(self.max_length, self.width, dtype=o.dtype)
        self.layers = [Layer(o) for _ in range(self.depth)]
        self.final_layer_norm = o.norm("final_layer_norm")
        if self.projection is not None:
            self.text_projection = Dense(self.projection, "pytorch", False, o.dtype, use_bias=False)

    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> TextFeatures:
        """Features of the texts.

        Args:
          input_ids: int [B, N], N at most max_length.
          attention_mask: [B, N], 1 for the tokens that count; None counts all, as Stable Diffusion does.

        Raises:
          ValueError: fields that cannot work together, or too many tokens.
        """
        input_ids = jnp.asarray(input_ids)
        length = input_ids.shape[1]
        if length > self.max_length:
            raise ValueError(f"input_ids {input_ids.shape}: this network takes {self.max_length} tokens")
        mask = None if attention_mask is None else jnp.asarray(attention_mask).astype(bool)
        h = self.token_embedding(input_ids) + self.position_embedding(jnp.arange(length))
        states = [h]
        for layer in self.layers:
            h = layer(h, mask)
            states.append(h)
        last = self.normalize(h)
        at_end = last[jnp.arange(len(input_ids)), self._ends(input_ids)]
        embeds = None if self.projection is None else _float32(self.text_projection(at_end))
        return TextFeatures(
            last_hidden_state=last,
            penultimate=_float32(states[-2]),
            pooled=at_end if embeds is None else embeds,
            text_embeds=embeds,
            hidden_states=tuple(states),
        )

    def normalize(self, hidden_state: jax.Array) -> jax.Array:
        """The last normalisation, for an earlier layer's output (clip skip): [B, N, C] -> the same, float32."""
        return _float32(self.final_layer_norm(hidden_state))

    @nn.nowrap
    def _ends(self, input_ids: jax.Array) -> jax.Array:
        if self.end_token == LEGACY_END:
            return input_ids.argmax(axis=1)
        return (input_ids == self.end_token).argmax(axis=1)


class Layer(nn.Module):
    """A residual transformer layer, normalised before its branches: [B, N, C] -> the same."""

    options: LayerOptions

    @nn.compact
    def __call__(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        o, width = self.options, h.shape[-1]
        h = h + SelfAttention(o, name="self_attn")(o.norm("layer_norm1")(h), mask)
        inner = o.dense(o.mlp_width, "mlp_fc1")(o.norm("layer_norm2")(h))
        return h + o.dense(width, "mlp_fc2")(ACTIVATIONS[o.activation](inner))


class SelfAttention(nn.Module):
    """Causal multi-head attention: [B, N, C] -> the same."""

    options: LayerOptions

    @nn.compact
    def __call__(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        o, width = self.options, h.shape[-1]
        q, k, v = (o.dense(width, name)(h) for name in ("q_proj", "k_proj", "v_proj"))
        return o.dense(width, "out_proj")(attend(q, k, v, o.num_heads, mask=mask, causal=True))


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
