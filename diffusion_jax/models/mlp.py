"""A residual MLP for tiny images: every pixel sees every other at once, and the work is dense products alone."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.layers import Dropout, timestep_embedding
from diffusion_jax.models.once import computed_once
from diffusion_jax.options import described


@described(
    width="of the residual stream",
    depth="residual blocks",
    dropout="share of activations that training drops inside the blocks",
)
class MLP(nn.Module):
    """Predicts an image-shaped quantity from a noisy image and its time.

    The blocks are those of a diffusion transformer without the attention: a normalisation whose scale, shift and
    residual gate follow from time and class (adaLN-Zero, Peebles and Xie 2023, section 3.2), then two dense layers. On
    a CPU an 8x8 image costs a small part of what a convolutional network of the same quality costs; beyond some 16x16
    pixels the first and last layers grow too large, and a U-Net is the better choice.

    num_classes is None for an unconditional network, else the class index num_classes is the null class. dtype is of
    the computation; parameters, normalisation and output are float32.
    """

    out_channels: int = 1
    width: int = 512
    depth: int = 4
    num_classes: int | None = None
    dropout: float = 0.1
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array,
        class_labels: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The prediction [B, H, W, out_channels], float32.

        sample: [B, H, W, C]; timestep: scalar or [B]; class_labels: int32 [B] for a network with classes only; train
        applies dropout, from the PRNG stream "dropout". Raises ValueError for labels missing or unexpected.
        """
        checks.check_labels(self.num_classes, class_labels)
        batch, height, width, _ = sample.shape
        time = jnp.broadcast_to(jnp.asarray(timestep), (batch,))
        condition = timestep_embedding(time, self.width // 2, flip_sin_to_cos=False, freq_shift=1.0)
        condition = nn.Dense(self.width, dtype=self.dtype, name="time_1")(condition)
        condition = nn.Dense(self.width, dtype=self.dtype, name="time_2")(nn.silu(condition))
        if self.num_classes is not None:
            embed = nn.Embed(self.num_classes + 1, self.width, dtype=self.dtype, name="class_embedding")
            condition = condition + embed(jnp.asarray(class_labels))
        condition = nn.silu(condition)

        h = nn.Dense(self.width, dtype=self.dtype, name="input")(sample.reshape(batch, -1))
        for i in range(self.depth):
            scale, shift, gate = self._modulation(condition, 3, f"block_{i}_modulation")
            residual = _normalize(h) * (1 + scale) + shift
            residual = nn.silu(nn.Dense(self.width, dtype=self.dtype, name=f"block_{i}_1")(residual))
            residual = nn.Dense(self.width, dtype=self.dtype, name=f"block_{i}_2")(residual)
            h = computed_once(h + gate * Dropout(self.dropout, deterministic=not train)(residual))
        scale, shift = self._modulation(condition, 2, "output_modulation")
        h = _normalize(h) * (1 + scale) + shift
        pixels = nn.Dense(height * width * self.out_channels, kernel_init=nn.initializers.zeros, name="output")(h)
        return pixels.reshape(batch, height, width, self.out_channels)

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work with images of that size."""
        for field in ("out_channels", "depth"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)}: it must be 1 or more")
        if self.width < 8 or self.width % 2:
            raise ValueError(f"width={self.width}: it must be an even number from 8 up")
        checks.check_dropout(self.dropout)
        if math.prod((image_size, image_size, channels)) > 4096:
            raise ValueError(
                f"images of {image_size}x{image_size}x{channels}: an MLP takes at most 4096 values an image; use 'unet'"
            )

    def _modulation(self, condition: jax.Array, parts: int, name: str) -> list[jax.Array]:
        dense = nn.Dense(parts * self.width, kernel_init=nn.initializers.zeros, dtype=self.dtype, name=name)
        return jnp.split(dense(condition), parts, axis=-1)


def _normalize(x: jax.Array) -> jax.Array:
    """Layer normalisation without parameters, its statistics in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(variance + 1e-6)).astype(x.dtype)
