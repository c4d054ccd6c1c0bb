"""The transformer of Stable Diffusion 3 (Esser et al. 2024, arXiv:2403.03206) and 3.5.

                depth   num_heads   qk_norm   dual_attention   parameters
SD 3 medium        24          24   no        none             2,028,328,000
SD 3.5 large       38          38   yes       none
SD 3.5 medium      24          24   yes       blocks 0 to 12
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.dit import PatchEmbedding, encode_places, position_embedding
from diffusion_jax.models.joint_blocks import FinalNorm, JointBlock, JointOptions, TimeTextEmbedding
from diffusion_jax.models.scanned import apply_layers


class MMDiT(nn.Module):
    """Predicts the velocity of a rectified flow from a noisy latent, its time and the features of a text.

    Fields; the defaults are Stable Diffusion 3 medium's:

    - out_channels; patch_size: the latent becomes one token for each square of so many pixels.
    - depth, num_heads, head_width: of the transformer, as wide as all heads together.
    - qk_norm: RMS normalisation of queries and keys. dual_attention: the blocks with a second attention within the
      image.
    - sample_size: side of the latents of its training; position_grid: side, in patches, of the table of positions,
      from whose middle those of a latent are cut.
    - stored_positions: the table is a parameter, for files whose table is not the one of the formula.
    - remat: what the backward pass keeps of blocks, see :mod:`diffusion_jax.models.remat`.
    - scan_layers: equal blocks are one loop over stacked parameters, see :mod:`diffusion_jax.models.scanned`.
    - dtype: of the computation. Normalisation statistics, softmax and output are at least float32.
    """

    out_channels: int = 16
    patch_size: int = 2
    depth: int = 24
    num_heads: int = 24
    head_width: int = 64
    qk_norm: bool = False
    dual_attention: tuple[int, ...] = ()
    sample_size: int = 128
    position_grid: int = 192
    stored_positions: bool = False
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
        block_controlnet_hidden_states: Sequence[jax.Array] | None = None,
    ) -> jax.Array:
        """The velocity [B, H, W, out_channels], float32.

        Args:
          hidden_states: noisy latents [B, H, W, C].
          timestep: scalar or [B], the flow's time times 1000: 1000 is noise.
          encoder_hidden_states: features of the text [B, tokens, D].
          pooled_projections: the pooled text [B, P].
          block_controlnet_hidden_states: of a ControlNet, residuals [B, patches, width] that are shared out evenly and
            added behind every block but the last.

        Raises:
          ValueError: fields or shapes that cannot work together.
        """
        batch, height, width, _ = hidden_states.shape
        self._check(height, width)
        o = JointOptions(self.num_heads, self.head_width, self.qk_norm, jnp.dtype(self.dtype))
        p, grid = self.patch_size, (height // self.patch_size, width // self.patch_size)
        h = PatchEmbedding(o.width, p, o.dtype, name="patch_embedding")(hidden_states)
        h = h + self._positions(grid, o.width).astype(h.dtype)
        time = jnp.broadcast_to(jnp.asarray(timestep), (batch,))
        condition = TimeTextEmbedding(o, name="time_text_embed")(time, pooled_projections)
        context = o.dense(o.width, "context_embedder")(encoder_hidden_states)

        which, add = None, _unchanged
        if block_controlnet_hidden_states is not None:
            which, add = _residual_adder(block_controlnet_hidden_states, self.depth)
        h, context = apply_layers(
            JointBlock,
            [(o, i in self.dual_attention, i == self.depth - 1) for i in range(self.depth)],
            "transformer_blocks",
            lambda block, streams, control: add(block(*streams, condition), control),
            (h, context),
            which,
            scan=self.scan_layers,
            remat=self.remat,
        )
        h = FinalNorm(o, name="norm_out")(h, condition)
        h = o.dense(p * p * self.out_channels, "proj_out", nn.initializers.zeros)(h)
        h = h.reshape(batch, *grid, p, p, self.out_channels).swapaxes(2, 3)
        return h.reshape(batch, height, width, -1).astype(jnp.promote_types(o.dtype, jnp.float32))

    def _positions(self, grid: tuple[int, int], width: int) -> jax.Array:
        """The middle of the table, one row for each patch: [rows * columns, width]."""
        side = self.position_grid
        top, left = ((side - count) // 2 for count in grid)
        if self.stored_positions:
            shape = (1, side * side, width)
            table = self.param("positions", lambda key: jnp.asarray(position_table(self), jnp.float32).reshape(shape))
            middle = table.reshape(side, side, width)[top : top + grid[0], left : left + grid[1]]
            return middle.reshape(-1, width)
        scale = self.sample_size // self.patch_size / side
        rows, columns = (
            jnp.asarray(encode_places((first + np.arange(count)) * scale, width), jnp.float32)
            for first, count in zip((top, left), grid, strict=True)
        )
        halves = columns[None, :, :], rows[:, None, :]
        return jnp.concatenate([jnp.broadcast_to(x, (*grid, width // 2)) for x in halves], axis=-1).reshape(-1, width)

    @nn.nowrap
    def _check(self, height: int, width: int) -> None:
        checks.check_counts(
            self,
            ("out_channels", "patch_size", "depth", "num_heads", "head_width", "sample_size", "position_grid"),
        )
        checks.check_dtype(self.dtype)
        if self.num_heads * self.head_width % 4:
            raise ValueError(
                f"num_heads={self.num_heads}, head_width={self.head_width}: the embedding of positions needs their"
                " product to be a multiple of 4"
            )
        for side in (height, width):
            if side % self.patch_size or side // self.patch_size > self.position_grid:
                raise ValueError(
                    f"latents of {height}x{width}: the sides must be multiples of patch_size={self.patch_size}, up to"
                    f" {self.patch_size * self.position_grid}"
                )


Streams = tuple[jax.Array, jax.Array]


def _unchanged(streams: Streams, control: Any) -> Streams:
    return streams


def _residual_adder(residuals: Sequence[jax.Array], depth: int) -> tuple[Any, Callable[[Streams, Any], Streams]]:
    """For each block, which residual it takes and whether it does, and the function that adds it to the image."""
    if not 1 <= len(residuals) <= depth:
        raise ValueError(
            f"block_controlnet_hidden_states holds {len(residuals)} arrays; this network takes 1 to {depth}"
        )
    interval, stacked = depth / len(residuals), jnp.stack(list(residuals))
    taken = np.array([int(i / interval) for i in range(depth)])
    factor = np.ones(depth, np.float32)
    factor[-1] = 0  # what leaves the last block is the prediction

    def add(streams: Streams, control: tuple[jax.Array, jax.Array]) -> Streams:
        index, weight = control
        h, context = streams
        return h + (weight * stacked[index]).astype(h.dtype), context

    return (jnp.asarray(taken), jnp.asarray(factor)), add


def position_table(model: MMDiT) -> np.ndarray:
    """The positions of the formula, float64 [position_grid^2, width]."""
    side, base = model.position_grid, model.sample_size // model.patch_size
    return position_embedding((side, side), (base, base), model.num_heads * model.head_width)
