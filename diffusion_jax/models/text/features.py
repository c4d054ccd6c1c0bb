"""What a text encoder returns, and the attention that the three kinds share."""

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class TextFeatures:
    """Features of a batch of texts, float32.

    Attributes:
      last_hidden_state: [B, N, C], after the last normalisation.
      penultimate: [B, N, C], the input of the last layer, not normalised (SDXL and SD 3 read it).
      pooled: one vector a text. CLIP: the last state at the end-of-text token, projected where the network has a
        projection. BERT: the mean of the tokens at length one. T5: the mean of the tokens.
      text_embeds: CLIP's projected vector [B, P]; None without a projection.
      first_token: BERT's own pooled vector [B, C]; None for the others.
      hidden_states: the input of every layer, the embeddings first, and the output of the last: each [B, N, C], not
        normalised. A compiled program computes those that are used.
    """

    last_hidden_state: jax.Array
    penultimate: jax.Array
    pooled: jax.Array
    text_embeds: jax.Array | None = None
    first_token: jax.Array | None = None
    hidden_states: tuple[jax.Array, ...] = ()


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    heads: int,
    *,
    scale: float | None = None,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    causal: bool = False,
) -> jax.Array:
    """Attention of [B, N, C] to [B, N, C], with what texts need besides.

    Args:
      scale: of the scores; None divides by the square root of a head's width.
      bias: added to the scores, [1, heads, N, N].
      mask: bool [B, N], the tokens that count; None counts all.
      causal: a token sees itself and those before it.
    """
    split = [x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v)]
    seen = None if mask is None else mask[:, None, None, :]
    added = None if bias is None else bias.astype(q.dtype)
    h = jax.nn.dot_product_attention(*split, bias=added, mask=seen, scale=scale, is_causal=causal)
    return h.reshape(q.shape)


def counted(mask: jax.Array | None, tokens: jax.Array) -> jax.Array:
    """The mask as bool [B, N]; all tokens without one."""
    return jnp.ones(tokens.shape, bool) if mask is None else jnp.asarray(mask).astype(bool)


def mean_of_tokens(h: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over the tokens that count: [B, N, C], bool [B, N] -> [B, C]."""
    weights = mask[..., None].astype(h.dtype)
    return (h * weights).sum(axis=1) / jnp.maximum(weights.sum(axis=1), 1e-9)
