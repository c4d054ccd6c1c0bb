"""The blocks of EDM's U-Nets: resampling with a filter, residual block, self-attention.

Karras et al. 2022 (arXiv:2206.00364, table 1) run three networks through one block: DDPM++ and NCSN++
(Song et al. 2021) and ADM (Dhariwal & Nichol 2021). :data:`FAMILIES` is what sets them apart.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from diffusion_jax.models.attention import dot_product_attention
from diffusion_jax.models.layers import (
    Conv,
    Dense,
    Dropout,
    GroupNorm,
    Initialization,
    Initializer,
    UpsampleConv,
    average_pool,
    upsample_nearest,
)
from diffusion_jax.models.once import computed_once

Resample = Literal["up", "down"]


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family of networks differs from the other.

    Attributes:
      initialization: of kernels and biases, see :mod:`diffusion_jax.models.layers` ("ddpm" is Xavier's rule).
      scale_shift_norm: the embedding scales and shifts the second norm; otherwise it is added before it.
      residual_scale: every sum of a block is multiplied by it.
      project_resampled: blocks that change the resolution have a 1x1 convolution on their skip path, even where
        the number of channels stays.
      head_channels: width of an attention head; None is one head.
      attend_every_block: on the way up; otherwise only the last block of a level has attention.
      norm_eps: of the group normalisations.
    """

    initialization: Initialization
    scale_shift_norm: bool
    residual_scale: float
    project_resampled: bool
    head_channels: int | None
    attend_every_block: bool
    norm_eps: float


FAMILIES: dict[str, Family] = {
    "song": Family("ddpm", False, math.sqrt(0.5), True, None, False, 1e-6),  # DDPM++ and NCSN++
    "adm": Family("pytorch", True, 1.0, False, 64, True, 1e-5),
}


@dataclasses.dataclass(frozen=True)
class EDMOptions:
    """What all blocks of one network share."""

    family: Family
    resample_filter: tuple[float, ...]
    dropout: float
    dtype: DTypeLike

    def norm(self, channels: int, name: str) -> GroupNorm:
        return GroupNorm(norm_groups(channels), self.family.norm_eps, self.dtype, name=name)

    def conv(self, features: int, name: str, *, kernel_size: int = 3, last: bool = False) -> Conv:
        return Conv(
            features,
            kernel_size=kernel_size,
            padding=kernel_size // 2,
            initialization=self.family.initialization,
            last=last,
            dtype=self.dtype,
            name=name,
        )

    def dense(self, features: int, name: str, *, last: bool = False, init: Initializer | None = None) -> Dense:
        return Dense(features, self.family.initialization, last, self.dtype, init, name=name)

    def resample(self, x: jax.Array, mode: Resample | None) -> jax.Array:
        if mode is None:
            return x
        return upsample(x, self.resample_filter) if mode == "up" else downsample(x, self.resample_filter)


def norm_groups(channels: int) -> int:
    """Groups of a normalisation: 32, but never fewer than four channels in one."""
    return min(32, channels // 4)


def downsample(x: jax.Array, taps: tuple[float, ...], *, pad: bool = True) -> jax.Array:
    """[B, H, W, C] -> [B, H/2, W/2, C]: smoothed with the separable filter, then every second pixel.

    taps: an even number of weights, normalised here to sum to one. The borders are padded with zeros so that the
    output is half the input; without ``pad`` the input must bring that border, (len(taps) - 1) // 2 on each side.
    """
    if tuple(taps) == (1, 1):
        return average_pool(x)
    weights = np.asarray(taps, np.float64) / np.sum(taps)
    border = (len(taps) - 1) // 2 if pad else 0
    for axis in (1, 2):
        x = _pad(x, border, axis)
        reach = x.shape[axis] - len(taps) + 1  # positions of the first tap, of which every second is kept
        x = sum(
            float(weight) * lax.slice_in_dim(x, k, k + reach, stride=2, axis=axis) for k, weight in enumerate(weights)
        )  # pyright: ignore[reportAssignmentType]
    return x


def upsample(x: jax.Array, taps: tuple[float, ...]) -> jax.Array:
    """[B, H, W, C] -> [B, 2H, 2W, C]: zeros between the pixels, then the separable filter times two an axis.

    The transpose of :func:`downsample`, up to the factor four. taps: an even number of weights.
    """
    if tuple(taps) == (1, 1):
        return upsample_nearest(x)
    weights = 2 * np.asarray(taps, np.float64) / np.sum(taps)
    border, margin = (len(taps) - 1) // 2, len(taps)
    for axis in (1, 2):
        size = x.shape[axis]
        padded = _pad(x, margin, axis)
        phases = []
        for phase in (0, 1):
            # output 2 j + phase takes input j - shift through tap k = 2 shift + phase + border
            terms = [
                float(weight) * lax.slice_in_dim(padded, margin - shift, margin - shift + size, axis=axis)
                for k, weight in enumerate(weights)
                for shift, remainder in [divmod(k - phase - border, 2)]
                if remainder == 0
            ]
            phases.append(sum(terms))
        interleaved = jnp.stack(phases, axis=axis + 1)
        x = interleaved.reshape(*x.shape[:axis], 2 * size, *x.shape[axis + 1 :])
    return x


def _pad(x: jax.Array, border: int, axis: int) -> jax.Array:
    return jnp.pad(x, [(border, border) if i == axis else (0, 0) for i in range(x.ndim)])


class EDMBlock(nn.Module):
    """Residual block with optional change of resolution and optional self-attention behind it.

    Submodule names are the released code's. ``embedding`` comes with its last SiLU applied.
    """

    features: int
    options: EDMOptions
    resample: Resample | None = None
    attention: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, embedding: jax.Array, train: bool) -> jax.Array:
        o, family, channels = self.options, self.options.family, x.shape[-1]
        h = nn.silu(o.norm(channels, "norm0")(x))
        if self.resample == "up" and o.resample_filter == (1, 1):
            h = UpsampleConv(self.features, initialization=family.initialization, dtype=o.dtype, name="conv0")(h)
        else:
            h = o.conv(self.features, "conv0")(o.resample(h, self.resample))

        width = 2 * self.features if family.scale_shift_norm else self.features
        shift = o.dense(width, "affine")(embedding)[:, None, None, :]
        if family.scale_shift_norm:
            scale, shift = jnp.split(shift, 2, axis=-1)
            h = o.norm(self.features, "norm1")(h) * (1 + scale) + shift
        else:
            h = o.norm(self.features, "norm1")(h + shift)
        h = Dropout(o.dropout, deterministic=not train)(nn.silu(h))
        h = o.conv(self.features, "conv1", last=True)(h)

        x = o.resample(x, self.resample)
        if channels != self.features or (self.resample is not None and family.project_resampled):
            x = o.conv(self.features, "skip", kernel_size=1)(x)
        x = computed_once((x + h) * family.residual_scale)
        if self.attention:
            x = computed_once((x + EDMAttention(o, name="attention")(x)) * family.residual_scale)
        return x


class EDMAttention(nn.Module):
    """Self-attention over all pixels, [B, H, W, C] -> the same; the caller adds it to its input."""

    options: EDMOptions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        o = self.options
        batch, height, width, channels = x.shape
        tokens = o.norm(channels, "norm2")(x).reshape(batch, height * width, channels)
        q, k, v = (self._projection(channels, name)(tokens) for name in ("to_q", "to_k", "to_v"))
        attended = dot_product_attention(q, k, v, channels // (o.family.head_channels or channels))
        return o.dense(channels, "proj", last=True)(attended.reshape(x.shape))

    def _projection(self, channels: int, name: str) -> Dense:
        # The released code draws the three as one kernel [C, 3C]. Where that is by Xavier's rule it is also multiplied
        # by sqrt(0.2), a variance of 0.2 / 2C.
        xavier = self.options.family.initialization == "ddpm"
        init = nn.initializers.variance_scaling(0.1, "fan_avg", "uniform") if xavier else None
        return self.options.dense(channels, name, init=init)
