"""The encoder of T5 (Raffel et al. 2020, arXiv:1910.10683) and of its version 1.1, which SD 3 and Flux read.

Submodule names follow transformers' T5EncoderModel.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.layers import Dense
from diffusion_jax.models.text.features import TextFeatures, attend, counted, mean_of_tokens

ACTIVATIONS = {
    "gated-gelu": lambda x: nn.gelu(x, approximate=True),
    "relu": nn.relu,
}


@dataclasses.dataclass(frozen=True)
class T5Options:
    """What all layers share; the fields are those of :class:`T5Encoder`."""

    num_heads: int
    head_width: int
    mlp_width: int
    feed_forward: str
    norm_eps: float
    dtype: DTypeLike

    def dense(self, features: int, name: str) -> Dense:
        return Dense(features, "pytorch", False, self.dtype, use_bias=False, name=name)

    def norm(self, name: str) -> nn.RMSNorm:
        return nn.RMSNorm(self.norm_eps, dtype=self.dtype, name=name)


class T5Encoder(nn.Module):
    """Token numbers to features.

    Fields; the defaults are those of T5 v1.1 XXL, SD 3's third encoder:

    - vocab_size, width, depth, num_heads, head_width, mlp_width: of the transformer.
    - feed_forward: "gated-gelu" (v1.1) or "relu" (the first T5).
    - num_buckets, max_distance: of the relative positions (section 2.1).
    - norm_eps: of the RMS normalisations. dtype: of the computation; statistics, softmax and results are float32.
    """

    vocab_size: int = 32128
    width: int = 4096
    depth: int = 24
    num_heads: int = 64
    head_width: int = 64
    mlp_width: int = 10240
    feed_forward: str = "gated-gelu"
    num_buckets: int = 32
    max_distance: int = 128
    norm_eps: float = 1e-6
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array | None = None) -> TextFeatures:
        """Features of the texts.

        Args:
          input_ids: int [B, N].
          attention_mask: [B, N], 1 for the tokens that count; None counts all, as SD 3 does.

        Raises:
          ValueError: fields that cannot be.
        """
        checks.check_counts(
            self,
            ("vocab_size", "width", "depth", "num_heads", "head_width", "mlp_width", "num_buckets", "max_distance"),
        )
        checks.check_choice("feed_forward", self.feed_forward, tuple(ACTIVATIONS))
        checks.check_dtype(self.dtype)
        o = T5Options(
            self.num_heads, self.head_width, self.mlp_width, self.feed_forward, self.norm_eps, jnp.dtype(self.dtype)
        )
        input_ids = jnp.asarray(input_ids)
        mask = None if attention_mask is None else jnp.asarray(attention_mask).astype(bool)
        h = nn.Embed(self.vocab_size, self.width, dtype=o.dtype, name="shared")(input_ids)
        positions = nn.Embed(self.num_buckets, self.num_heads, dtype=jnp.float32, name="relative_attention_bias")
        buckets = relative_buckets(input_ids.shape[1], self.num_buckets, self.max_distance)
        bias = positions(buckets).transpose(2, 0, 1)[None]
        states = [h]
        for i in range(self.depth):
            h = T5Layer(o, name=f"block_{i}")(h, bias, mask)
            states.append(h)
        last = _float32(o.norm("final_layer_norm")(h))
        return TextFeatures(
            last_hidden_state=last,
            penultimate=_float32(states[-2]),
            pooled=mean_of_tokens(last, counted(mask, input_ids)),
            hidden_states=tuple(states),
        )


class T5Layer(nn.Module):
    """Attention and MLP, each residual behind an RMS normalisation: [B, N, C] -> the same."""

    options: T5Options

    @nn.compact
    def __call__(self, h: jax.Array, bias: jax.Array, mask: jax.Array | None) -> jax.Array:
        o, width = self.options, h.shape[-1]
        tokens, inner = o.norm("attention_norm")(h), o.num_heads * o.head_width
        q, k, v = (o.dense(inner, name)(tokens) for name in "qkv")
        # T5 folds the scale of the scores into its initialisation
        h = h + o.dense(width, "o")(attend(q, k, v, o.num_heads, scale=1.0, bias=bias, mask=mask))

        tokens, activation = o.norm("mlp_norm")(h), ACTIVATIONS[o.feed_forward]
        if o.feed_forward == "relu":
            hidden = activation(o.dense(o.mlp_width, "wi")(tokens))
        else:
            hidden = activation(o.dense(o.mlp_width, "wi_0")(tokens)) * o.dense(o.mlp_width, "wi_1")(tokens)
        return h + o.dense(width, "wo")(hidden)


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> jax.Array:
    """The bucket of each pair of positions, int32 [query, key]: half of them for keys behind the query.

    Of each half, one half holds single distances and the other grows logarithmically up to max_distance.
    """
    distance = jnp.arange(length)[None, :] - jnp.arange(length)[:, None]
    half = num_buckets // 2
    exact = half // 2
    far = jnp.abs(distance)
    growth = jnp.log(jnp.maximum(far, 1) / exact) / math.log(max_distance / exact) * (half - exact)
    logarithmic = jnp.minimum(exact + growth.astype(jnp.int32), half - 1)
    return jnp.where(distance > 0, half, 0) + jnp.where(far < exact, far, logarithmic)


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
