"""ControlNet for the transformer of Stable Diffusion 3: some of its blocks, which see the latent of an image."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.models.dit import PatchEmbedding
from diffusion_jax.models.joint_blocks import JointBlock, JointOptions, TimeTextEmbedding
from diffusion_jax.models.mmdit import MMDiT
from diffusion_jax.models.remat import rematerialized


class MMDiTControlNet(MMDiT):
    """Residuals for the blocks of a :class:`diffusion_jax.models.mmdit.MMDiT` from a control image.

    Fields: those of the transformer, of which out_channels and scan_layers change nothing; zero_pooled, whether
    pipelines give it zeros for the pooled text.
    """

    zero_pooled: bool = True

    @nn.compact
    def __call__(
        self,
        hidden_states: jax.Array,
        timestep: jax.Array,
        encoder_hidden_states: jax.Array,
        pooled_projections: jax.Array,
        controlnet_cond: jax.Array,
        conditioning_scale: float | jax.Array = 1.0,
    ) -> list[jax.Array]:
        """One residual for each block, float32 [B, tokens, width].

        Args:
          hidden_states, timestep, encoder_hidden_states, pooled_projections: as for the transformer.
          controlnet_cond: latent of the control image [B, H, W, C'], of the size of hidden_states; further channels
            behind its own where the network was trained so.
          conditioning_scale: factor on all residuals.

        Raises:
          ValueError: fields or shapes that cannot work together.
        """
        batch, height, width, _ = hidden_states.shape
        self._check(height, width)
        if controlnet_cond.shape[:3] != hidden_states.shape[:3]:
            wanted = hidden_states.shape[:3]
            raise ValueError(f"controlnet_cond {controlnet_cond.shape}: its first axes must be {wanted}")
        o = JointOptions(self.num_heads, self.head_width, self.qk_norm, jnp.dtype(self.dtype))
        h = PatchEmbedding(o.width, self.patch_size, o.dtype, name="patch_embedding")(hidden_states)
        h = h + self._positions((height // self.patch_size, width // self.patch_size), o.width).astype(h.dtype)
        h = h + PatchEmbedding(o.width, self.patch_size, o.dtype, name="control_embedding")(controlnet_cond)
        time = jnp.broadcast_to(jnp.asarray(timestep), (batch,))
        condition = TimeTextEmbedding(o, name="time_text_embed")(time, pooled_projections)
        context = o.dense(o.width, "context_embedder")(encoder_hidden_states)
        block = rematerialized(JointBlock, self.remat, ())
        outputs, wide = [], jnp.promote_types(o.dtype, jnp.float32)
        for i in range(self.depth):
            h, context = block(o, i in self.dual_attention, False, name=f"transformer_blocks_{i}")(
                h, context, condition
            )
            residual = o.dense(o.width, f"controlnet_blocks_{i}", nn.initializers.zeros)(h)
            outputs.append(residual.astype(wide) * conditioning_scale)
        return outputs
