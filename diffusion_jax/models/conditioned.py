"""Time and class for networks without a tradition of their own: one embedding, and a normalisation that it steers."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.blocks import BlockOptions
from diffusion_jax.models.layers import timestep_embedding
from diffusion_jax.models.unet import TimeEmbedding

NORM_GROUPS = 8


def light_options(dropout: float, dtype: DTypeLike) -> BlockOptions:
    """The shared blocks as the light denoisers use them: no attention, scale and shift by the embedding."""
    return BlockOptions(
        num_heads=1,
        head_channels=None,
        resample="resblock",
        downsample_padding=1,
        scale_shift_norm=True,
        norm_groups=NORM_GROUPS,
        norm_eps=1e-5,
        dropout=dropout,
        initialization="ddpm",
        dtype=jnp.dtype(dtype),
    )


class Condition(nn.Module):
    """time, scalar or [B], and class_labels, int32 [B] or None -> [B, 4 channels]."""

    channels: int
    num_classes: int | None
    options: BlockOptions

    @nn.compact
    def __call__(self, time: jax.Array, class_labels: jax.Array | None, batch: int) -> jax.Array:
        checks.check_labels(self.num_classes, class_labels)
        time = jnp.broadcast_to(jnp.asarray(time), (batch,))
        features = timestep_embedding(time, self.channels, flip_sin_to_cos=False, freq_shift=1.0)
        embedding = TimeEmbedding(4 * self.channels, self.options, name="time_embedding")(features)
        if self.num_classes is not None:
            embed = nn.Embed(self.num_classes + 1, 4 * self.channels, dtype=self.options.dtype, name="class_embedding")
            embedding = embedding + embed(jnp.asarray(class_labels))
        return embedding


class ConditionedNorm(nn.Module):
    """SiLU of a group normalisation whose scale and shift follow from the embedding: [B, H, W, C] -> the same."""

    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array) -> jax.Array:
        projected = self.options.dense(2 * x.shape[-1], "time_emb_proj")(nn.silu(embedding))
        scale, shift = jnp.split(projected[:, None, None, :], 2, axis=-1)
        return nn.silu(self.options.norm("norm")(x) * (1 + scale) + shift)


def check_light(module: nn.Module, image_size: int, channels: int) -> None:
    """The checks that the light denoisers share; raises ValueError, one line."""
    checks.check_counts(module, ("out_channels", "channels", "num_blocks"), optional=("num_classes",))
    checks.check_image(image_size, channels)
    checks.check_dropout(module.dropout)
    checks.check_dtype(module.dtype)
    checks.check_levels(image_size, None, module.channel_mults, ())
    for width in (module.channels, *checks.level_widths(module.channels, module.channel_mults)):
        if width % NORM_GROUPS:
            raise ValueError(
                f"channels={module.channels}, channel_mults={tuple(module.channel_mults)}: every level needs a multiple"
                f" of {NORM_GROUPS} channels, one has {width}"
            )
