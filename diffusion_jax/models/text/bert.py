"""BERT (Devlin et al. 2019, arXiv:1810.04805), as the sentence encoders of the MiniLM family use it.

Submodule names follow transformers' BertModel.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.layers import Dense
from diffusion_jax.models.text.features import TextFeatures, attend, counted, mean_of_tokens


@dataclasses.dataclass(frozen=True)
class BertOptions:
    """What all layers share; the fields are those of :class:`BertEncoder`."""

    num_heads: int
    mlp_width: int
    norm_eps: float
    dtype: DTypeLike

    def dense(self, features: int, name: str) -> Dense:
        return Dense(features, "pytorch", False, self.dtype, name=name)

    def norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(self.norm_eps, use_fast_variance=False, dtype=self.dtype, name=name)


class BertEncoder(nn.Module):
    """Token numbers to features, and to one vector of length one a sentence (Reimers and Gurevych 2019).

    Fields; the defaults are those of all-MiniLM-L6-v2, 22.7 M parameters: vocab_size, max_length and num_types are the
    rows of the three embeddings; width, depth, num_heads, mlp_width of the transformer; pooler, whether there is the
    layer behind the first token; norm_eps of the normalisations; dtype of the computation, with float32 statistics,
    softmax and results.
    """

    vocab_size: int = 30522
    max_length: int = 512
    num_types: int = 2
    width: int = 384
    depth: int = 6
    num_heads: int = 12
    mlp_width: int = 1536
    pooler: bool = True
    norm_eps: float = 1e-12
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        token_type_ids: jax.Array | None = None,
    ) -> TextFeatures:
        """Features of the texts: int [B, N], and 1 for the tokens that count (None: all); types 0 if not given.

        Raises:
          ValueError: fields that cannot work together, or too many tokens.
        """
        checks.check_counts(
            self, ("vocab_size", "max_length", "num_types", "width", "depth", "num_heads", "mlp_width")
        )  # fmt: skip
        checks.check_dtype(self.dtype)
        if self.width % self.num_heads:
            raise ValueError(f"width={self.width}: it must be a multiple of num_heads={self.num_heads}")
        input_ids = jnp.asarray(input_ids)
        if input_ids.shape[1] > self.max_length:
            raise ValueError(f"input_ids {input_ids.shape}: this network takes {self.max_length} tokens")
        o = BertOptions(self.num_heads, self.mlp_width, self.norm_eps, jnp.dtype(self.dtype))
        mask = counted(attention_mask, input_ids)
        types = jnp.zeros_like(input_ids) if token_type_ids is None else jnp.asarray(token_type_ids)

        def embed(rows: int, name: str, numbers: jax.Array) -> jax.Array:
            return nn.Embed(rows, self.width, dtype=o.dtype, name=name)(numbers)

        h = embed(self.vocab_size, "word_embeddings", input_ids) + embed(self.num_types, "token_type_embeddings", types)
        h = h + embed(self.max_length, "position_embeddings", jnp.arange(input_ids.shape[1]))
        h = o.norm("embeddings_norm")(h)
        states = [h]
        for i in range(self.depth):
            h = BertLayer(o, name=f"layer_{i}")(h, mask)
            states.append(h)
        last = h.astype(jnp.promote_types(h.dtype, jnp.float32))
        mean = mean_of_tokens(last, mask)
        return TextFeatures(
            last_hidden_state=last,
            penultimate=states[-2].astype(last.dtype),
            pooled=mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12),
            first_token=jnp.tanh(o.dense(self.width, "pooler")(last[:, 0])) if self.pooler else None,
            hidden_states=tuple(states),
        )


class BertLayer(nn.Module):
    """Attention and MLP, normalised behind each residual: [B, N, C] -> the same."""

    options: BertOptions

    @nn.compact
    def __call__(self, h: jax.Array, mask: jax.Array) -> jax.Array:
        o, width = self.options, h.shape[-1]
        q, k, v = (o.dense(width, name)(h) for name in ("query", "key", "value"))
        attended = o.dense(width, "attention_output")(attend(q, k, v, o.num_heads, mask=mask))
        h = o.norm("attention_norm")(h + attended)
        inner = nn.gelu(o.dense(o.mlp_width, "intermediate")(h), approximate=False)
        return o.norm("output_norm")(h + o.dense(width, "output")(inner))
