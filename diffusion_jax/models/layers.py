"""The layers that the convolutional networks share: convolution, dense, group norm, resampling, time embedding.

Parameters are float32 and keep Flax's names (kernel, bias, scale, embedding); every layer computes in its
``dtype``. Two initialisations exist, because the papers differ in them and training feels it:

- ``"ddpm"`` (Ho et al. 2020, released code): variance scaling, fan-average, uniform, for every kernel; biases 0.
- ``"pytorch"`` (improved-diffusion, ADM): U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for kernels and biases alike.

The last layer of every residual branch, and of the network, starts (almost) at zero, so that a fresh network is
the identity on its skip path: scale 1e-10 in the first scheme, exact zeros in the second.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

Initialization = Literal["ddpm", "pytorch"]
INITIALIZATIONS: tuple[str, ...] = get_args(Initialization)
# Between the layers of convolutional networks, by the names of configs; the GELU is the exact one.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu": functools.partial(nn.gelu, approximate=False),
    "mish": jax.nn.mish,
    "relu": nn.relu,
}
Padding = int | tuple[tuple[int, int], tuple[int, int]]
Initializer = Callable[..., jax.Array]
LAYOUT = ("NHWC", "HWIO", "NHWC")


def kernel_init(scheme: Initialization, last: bool, fan_in: int, fan_out: int) -> Initializer:
    """Initializer of a kernel; ``last`` marks the end of a residual branch."""
    if scheme == "ddpm":
        scale = 1e-10 if last else 1.0
        return uniform(math.sqrt(3 * scale / ((fan_in + fan_out) / 2)))
    return nn.initializers.zeros if last else uniform(fan_in**-0.5)


def bias_init(scheme: Initialization, last: bool, fan_in: int) -> Initializer:
    """Initializer of the bias that goes with a kernel of that fan-in."""
    return nn.initializers.zeros if scheme == "ddpm" or last else uniform(fan_in**-0.5)


def uniform(bound: float) -> Initializer:
    """Initializer U(-bound, bound).

    Drawn as a vector and reshaped: the numbers are the same, but XLA's CPU compiler needs ten times longer for a
    generator over four axes, which made the initialisation the longest compilation of a training run.
    """

    def init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)

    return init


def normal(deviation: float) -> Initializer:
    """Initializer N(0, deviation^2), drawn as a vector for the reason that `uniform` gives."""

    def init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
        return deviation * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)

    return init


class Conv(nn.Module):
    """2-D convolution, [B, H, W, in] -> [B, H', W', features], kernel [k, k, in, features]."""

    features: int
    kernel_size: int = 3
    stride: int = 1
    padding: Padding = 1
    initialization: Initialization = "ddpm"
    last: bool = False
    dtype: DTypeLike = jnp.float32
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        k, channels = self.kernel_size, x.shape[-1]
        fan_in, fan_out = k * k * channels, k * k * self.features
        init = kernel_init(self.initialization, self.last, fan_in, fan_out)
        kernel = self.param("kernel", init, (k, k, channels, self.features), jnp.float32)
        h = self._convolve(x.astype(self.dtype), kernel)
        if not self.use_bias:
            return h
        bias = self.param("bias", bias_init(self.initialization, self.last, fan_in), (self.features,), jnp.float32)
        return h + bias.astype(self.dtype)

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        kernel = kernel.astype(x.dtype)
        if kernel.shape[:2] == (1, 1) and self.stride == 1 and self.padding == 0:
            return matmul(x, kernel[0, 0])
        pad = self.padding
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=((pad, pad), (pad, pad)) if isinstance(pad, int) else pad,
            dimension_numbers=LAYOUT,
        )


class UpsampleConv(Conv):
    """Nearest-neighbour doubling followed by a 3x3 convolution: [B, H, W, in] -> [B, 2H, 2W, features].

    Computed at the low resolution: a pixel of the result sees 2x2 different pixels, not 3x3, and which taps of the
    kernel fall on the same one depends on whether its row and column are even or odd. Four 2x2 convolutions with
    summed taps give the four kinds of pixels for 16/36 of the multiplications.
    """

    def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        rows = []
        for row, kernel_row in enumerate(_even_and_odd_taps(kernel)):
            pixels = [
                lax.conv_general_dilated(
                    x,
                    jnp.moveaxis(taps, 0, 1).astype(x.dtype),
                    window_strides=(1, 1),
                    padding=((1 - row, row), (1 - column, column)),
                    dimension_numbers=LAYOUT,
                )
                for column, taps in enumerate(_even_and_odd_taps(jnp.moveaxis(kernel_row, 1, 0)))
            ]
            rows.append(jnp.stack(pixels, axis=3))
        return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, self.features)


def _even_and_odd_taps(kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two taps along axis 0 that three become on doubled pixels, for pixels of even and odd index."""
    first, middle, last = kernel
    return jnp.stack([first, middle + last]), jnp.stack([first + middle, last])


def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """x @ kernel over the last axis. As a product of two matrices: XLA on the CPU copies longer shapes around."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], kernel.shape[-1])


class Dense(nn.Module):
    """Linear layer over the last axis, kernel [in, features]; ``kernel_initializer`` overrules the scheme's."""

    features: int
    initialization: Initialization = "ddpm"
    last: bool = False
    dtype: DTypeLike = jnp.float32
    kernel_initializer: Initializer | None = None
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scheme = kernel_init(self.initialization, self.last, channels, self.features)
        kernel = self.param("kernel", self.kernel_initializer or scheme, (channels, self.features), jnp.float32)
        h = matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return h
        bias = self.param("bias", bias_init(self.initialization, self.last, channels), (self.features,), jnp.float32)
        return h + bias.astype(self.dtype)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, heads: int) -> jax.Array:
    """Scaled dot-product attention: queries [B, N, C], keys and values [B, M, C] -> [B, N, C].

    Scores are divided by the square root of a head's width; their softmax is float32. Written as plain batched
    products, which run fastest on a CPU.
    """
    batch, length, channels = q.shape

    def split(x: jax.Array) -> jax.Array:
        """[B, N, C] -> [B * heads, N, C / heads]"""
        by_head = x.reshape(batch, -1, heads, channels // heads).swapaxes(1, 2)
        return by_head.reshape(batch * heads, -1, channels // heads)

    scores = jnp.einsum("nqc,nkc->nqk", split(q) * (channels // heads) ** -0.5, split(k))
    weights = nn.softmax(scores.astype(jnp.promote_types(q.dtype, jnp.float32)), axis=-1).astype(q.dtype)
    h = jnp.einsum("nqk,nkc->nqc", weights, split(v)).reshape(batch, heads, length, channels // heads)
    return h.swapaxes(1, 2).reshape(q.shape)


class Dropout(nn.Module):
    """flax.linen.Dropout with its mask drawn in one dimension: the same numbers, in a program that compiles faster.

    The mask follows from the PRNG stream "dropout", and what is kept is divided by its share.
    """

    rate: float
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.rate == 0 or self.deterministic:
            return x
        if self.rate == 1:
            return jnp.zeros_like(x)
        mask = jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, (math.prod(x.shape),)).reshape(x.shape)
        return jnp.where(mask, x / (1 - self.rate), jnp.zeros_like(x))


class GroupNorm(nn.Module):
    """Group normalisation over the spatial axes and each group of channels (Wu & He 2018).

    The statistics are float32 (or wider) whatever the compute dtype: a variance in bfloat16 has three digits. The
    variance is the mean square of the centred values, because E[x^2] - E[x]^2 loses its digits far from zero.
    Sums go over pixels first and join the channels of a group afterwards: arrays whose last axis is a group of
    two or four channels do not vectorise (three times slower on a CPU).
    """

    groups: int
    epsilon: float
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        centered = x - self._group_mean(x)
        variance = self._group_mean(jnp.square(centered))
        return (centered * (lax.rsqrt(variance + self.epsilon) * scale) + bias).astype(self.dtype)

    def _group_mean(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, 1, 1, C], every channel with the mean of its group."""
        batch, channels = x.shape[0], x.shape[-1]
        means = x.mean(axis=(1, 2)).reshape(batch, self.groups, channels // self.groups).mean(axis=-1)
        return means.repeat(channels // self.groups, axis=-1)[:, None, None, :]


def upsample_nearest(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, 2H, 2W, C], each pixel repeated."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def average_pool(x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H/2, W/2, C], the mean of each 2x2 square."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def timestep_embedding(
    timestep: jax.Array, channels: int, *, flip_sin_to_cos: bool, freq_shift: float, max_period: float = 10_000.0
) -> jax.Array:
    """Sinusoidal features of the time, [B] -> [B, channels], float32 (float64 for a float64 time).

    With half = channels // 2 the frequencies are max_period^(-i / (half - freq_shift)), i = 0..half-1.
    DDPM: sines first, freq_shift 1. OpenAI's networks and DiT: cosines first (``flip_sin_to_cos``), freq_shift 0.
    An odd number of channels ends with a zero.
    """
    half = channels // 2
    frequencies = np.exp(-np.log(max_period) * np.arange(half) / (half - freq_shift))
    time = timestep.astype(jnp.promote_types(timestep.dtype, jnp.float32))
    angles = time[:, None] * frequencies.astype(time.dtype)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    features = jnp.concatenate([cos, sin] if flip_sin_to_cos else [sin, cos], axis=-1)
    return jnp.pad(features, ((0, 0), (0, channels % 2)))
