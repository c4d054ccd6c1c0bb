"""The transformer of Flux (Black Forest Labs 2024): blocks of two streams, then blocks of one, rotary positions.

Fields as published: 19 blocks and 38 single blocks of 24 heads, 11,891,178,560 parameters (schnell) or
11,901,408,320 (dev, which is told the guidance scale).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.joint_blocks import (
    FinalNorm,
    JointAttention,
    JointBlock,
    JointOptions,
    Modulation,
    Rotation,
    TimeTextEmbedding,
)
from diffusion_jax.models.once import computed_once
from diffusion_jax.models.scanned import apply_layers

THETA = 10_000.0  # of the rotary positions


class FluxTransformer(nn.Module):
    """Predicts the velocity of a rectified flow from latent tokens, their time and the features of a text.

    Fields; the defaults are Flux schnell's: out_channels, of each token; depth and single_depth, blocks of two
    streams and of one; num_heads, head_width; rotary_widths, channels of a head that turn with each of a token's three
    positions; guidance, whether the network is told the guidance scale (dev); remat, what the backward pass keeps of
    blocks (:mod:`diffusion_jax.models.remat`); scan_layers, equal blocks as one loop over stacked parameters
    (:mod:`diffusion_jax.models.scanned`); dtype of the computation (normalisation statistics, softmax and output
    are at least float32).
    """

    out_channels: int = 64
    depth: int = 19
    single_depth: int = 38
    num_heads: int = 24
    head_width: int = 128
    rotary_widths: tuple[int, ...] = (16, 56, 56)
    guidance: bool = False
    remat: str = "none"
    scan_layers: bool = False
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self,
        hidden_states: jax.Array,
        timestep: jax.Array,
        encoder_hidden_states: jax.Array,
        pooled_projections: jax.Array,
        img_ids: jax.Array,
        txt_ids: jax.Array,
        guidance: jax.Array | None = None,
    ) -> jax.Array:
        """The velocity of every token, float32 [B, N, out_channels].

        Args:
          hidden_states: tokens [B, N, C], the 2x2 squares of a 16-channel latent.
          timestep: scalar or [B], the flow's time in [0, 1]: 1 is noise.
          encoder_hidden_states: features of the text [B, M, D]; pooled_projections: the pooled text [B, P].
          img_ids, txt_ids: positions [N, 3] and [M, 3]: zero, row, column of an image's token, zeros for the text.
          guidance: scale [B], for a network with guidance only.

        Raises:
          ValueError: fields or shapes that cannot work together.
        """
        self._check(guidance)
        batch, length, _ = hidden_states.shape
        o = JointOptions(self.num_heads, self.head_width, True, jnp.dtype(self.dtype))
        time = 1000.0 * jnp.broadcast_to(jnp.asarray(timestep), (batch,))
        scale = None if guidance is None else 1000.0 * jnp.broadcast_to(jnp.asarray(guidance), (batch,))
        condition = TimeTextEmbedding(o, name="time_text_embed")(time, pooled_projections, scale)
        h = o.dense(o.width, "x_embedder")(hidden_states)
        context = o.dense(o.width, "context_embedder")(encoder_hidden_states)
        rotation = rotary_angles(jnp.concatenate([jnp.asarray(img_ids), jnp.asarray(txt_ids)]), self.rotary_widths)

        h, context = apply_layers(
            JointBlock,
            [(o,)] * self.depth,
            "transformer_blocks",
            lambda block, streams, _: block(*streams, condition, rotation),
            (h, context),
            scan=self.scan_layers,
            remat=self.remat,
        )
        h = apply_layers(
            SingleBlock,
            [(o,)] * self.single_depth,
            "single_transformer_blocks",
            lambda block, h, _: block(h, condition, rotation),
            jnp.concatenate([h, context], axis=1),
            scan=self.scan_layers,
            remat=self.remat,
        )
        h = FinalNorm(o, name="norm_out")(h[:, :length], condition)
        h = o.dense(self.out_channels, "proj_out", nn.initializers.zeros)(h)
        return h.astype(jnp.promote_types(o.dtype, jnp.float32))

    @nn.nowrap
    def _check(self, guidance: jax.Array | None) -> None:
        checks.check_counts(self, ("out_channels", "depth", "single_depth", "num_heads", "head_width"))
        checks.check_dtype(self.dtype)
        if sum(self.rotary_widths) != self.head_width or any(width % 2 for width in self.rotary_widths):
            raise ValueError(
                f"rotary_widths={self.rotary_widths}: they must be even and add up to head_width={self.head_width}"
            )
        if (guidance is not None) != self.guidance:
            got = "none was given" if guidance is None else "a scale was given"
            raise ValueError(f"guidance={self.guidance}, but {got}")


class SingleBlock(nn.Module):
    """Attention and MLP side by side on both streams as one: tokens [B, N + M, width] -> the same."""

    options: JointOptions

    @nn.compact
    def __call__(self, h: jax.Array, condition: jax.Array, rotation: Rotation) -> jax.Array:
        o = self.options
        shift, scale, gate = Modulation(3, o, name="norm")(condition)
        tokens = o.norm(h) * (1 + scale) + shift
        mlp = nn.gelu(o.dense(4 * o.width, "proj_mlp")(tokens), approximate=True)
        attended, _ = JointAttention(o, project=False, name="attn")(tokens, rotation=rotation)
        return computed_once(h + gate * o.dense(o.width, "proj_out")(jnp.concatenate([attended, mlp], axis=-1)))


def rotary_angles(positions: jax.Array, widths: tuple[int, ...]) -> Rotation:
    """Cosines and sines of every pair of channels, float32 [N, sum(widths) / 2], of positions [N, len(widths)].

    Axis a turns its widths[a] / 2 pairs at the frequencies THETA^(-2i / widths[a]).
    """
    angles = [
        positions[:, axis, None].astype(jnp.float32) * THETA ** (-jnp.arange(0, width, 2) / width)
        for axis, width in enumerate(widths)
    ]
    joined = jnp.concatenate(angles, axis=-1)
    return jnp.cos(joined), jnp.sin(joined)
