"""ControlNet: a copy of the U-Net's way down that sees an image and corrects the U-Net (Zhang et al. 2023,
arXiv:2302.05543).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.models.blocks import BlockOptions
from diffusion_jax.models.conditional_unet import ConditionalTrunk, Conditions
from diffusion_jax.models.layers import Conv


class ControlNet(ConditionalTrunk):
    """Residuals for a :class:`diffusion_jax.models.conditional_unet.ConditionalUNet` from a control image.

    Fields: those of :class:`diffusion_jax.models.conditional_unet.ConditionalTrunk`; hint_widths, channels of the
    small network that brings the image to the size of the latents, halved once for each but the first; bgr, whether
    it was trained on images whose colours are in the order blue, green, red; global_pool, whether every residual is its
    mean over the pixels (of networks for the content of an image, not its places).
    """

    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    bgr: bool = False
    global_pool: bool = False

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array,
        encoder_hidden_states: jax.Array,
        controlnet_cond: jax.Array,
        conditioning_scale: float | jax.Array = 1.0,
        class_labels: jax.Array | None = None,
        added_cond_kwargs: Conditions | None = None,
        guess_mode: bool = False,
        train: bool = False,
    ) -> tuple[list[jax.Array], jax.Array]:
        """Residuals for the way down, in its order, and for the middle, each float32 [B, h, w, C] or [B, 1, 1, C].

        Args:
          sample, timestep, encoder_hidden_states, class_labels, added_cond_kwargs, train: as for the U-Net.
          controlnet_cond: control image [B, H f, W f, 3] in [0, 1] for latents [B, H, W, C], f = 2^(hint_widths - 1).
          conditioning_scale: factor on all residuals.
          guess_mode: weaker corrections at high resolutions, 0.1 at the highest up to 1 in the middle, for sampling
            without a prompt; nothing with global_pool.

        Raises:
          ValueError: fields or shapes that cannot work together; labels, conditions missing or unexpected.
        """
        self.check(sample, encoder_hidden_states)
        factor = 2 ** (len(self.hint_widths) - 1)
        wanted = (sample.shape[0], factor * sample.shape[1], factor * sample.shape[2])
        if controlnet_cond.shape[:3] != wanted:
            raise ValueError(f"controlnet_cond {controlnet_cond.shape}: its first axes must be {wanted}")
        o, context = self.options(), encoder_hidden_states
        embedding = self.embed(timestep, sample.shape[0], class_labels, added_cond_kwargs)
        hint = controlnet_cond[..., ::-1] if self.bgr else controlnet_cond
        hint = Hint(self.hint_widths, self.widths[0], o, name="controlnet_cond_embedding")(hint)
        h, skips = self.down(o.conv(self.widths[0], "conv_in")(sample) + hint, embedding, context, train)
        if self.mid_block == "none":
            raise ValueError("mid_block='none': a ControlNet's could be 'attention' or 'resnet'")
        h = self.middle(h, embedding, context, train)

        outputs = [
            _zero_convolution(skip, o, f"controlnet_down_blocks_{i}") for i, skip in enumerate(skips)
        ]  # fmt: skip
        outputs.append(_zero_convolution(h, o, "controlnet_mid_block"))
        weaker = guess_mode and not self.global_pool
        scales = jnp.logspace(-1, 0, len(outputs)) if weaker else jnp.ones(len(outputs))
        wide = jnp.promote_types(o.dtype, jnp.float32)
        outputs = [x.astype(wide) * (scale * conditioning_scale) for x, scale in zip(outputs, scales, strict=True)]
        if self.global_pool:
            outputs = [x.mean((1, 2), keepdims=True) for x in outputs]
        return outputs[:-1], outputs[-1]

    @nn.nowrap
    def number_activation(self) -> str:
        """As :meth:`ConditionalTrunk.number_activation`."""
        return "silu"


class Hint(nn.Module):
    """The control image at the size of the latents: [B, H f, W f, 3] -> [B, H, W, features]."""

    widths: Sequence[int]
    features: int
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        o = self.options
        h = nn.silu(o.conv(self.widths[0], "conv_in")(x))
        for i, (before, after) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            h = nn.silu(o.conv(before, f"blocks_{2 * i}")(h))
            strided = Conv(
                after, stride=2, initialization=o.initialization, dtype=o.dtype, name=f"blocks_{2 * i + 1}"
            )  # fmt: skip
            h = nn.silu(strided(h))
        return o.conv(self.features, "conv_out", last=True)(h)


def _zero_convolution(x: jax.Array, options: BlockOptions, name: str) -> jax.Array:
    """A 1x1 convolution that starts at zero, so that training starts from the uncorrected U-Net."""
    conv = Conv(x.shape[-1], 1, 1, 0, options.initialization, True, options.dtype, name=name)
    return conv(x)
