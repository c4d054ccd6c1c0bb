"""The Inception network of the Frechet Inception distance (the graph of 2015-12-05, with 1,008 classes).

Szegedy et al. 2016, "Rethinking the Inception architecture", as Heusel et al. 2017 use it. It differs from
torchvision's inception_v3: average pools leave the padding out, the last block pools by the maximum, there are 1,008
classes, and the weights come from another training. Batch normalisation is folded into the convolutions when weights
are loaded (:mod:`diffusion_jax.metrics.features.inception_weights`).

Blocks are written for speed where that only changes the order of sums: a 1x1 convolution of an average is the average
of the 1x1 convolution, which has fewer channels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike

from diffusion_jax.metrics.features import resize as resizing
from diffusion_jax.metrics.features.extractor import checked_batch

SIZE, CLASSES, POOL_FEATURES = 299, 1008, 2048
# Where a spatial feature map has its first channels taken for sFID (Nash et al. 2021).
SPATIAL_CHANNELS = 7
# name -> (resize, divisor and offset of the levels 0..255): what each implementation feeds to the network
PREPROCESSING = {
    "tf": (resizing.TF1_BILINEAR, "(x - 128) / 128"),
    "pytorch-fid": (resizing.BILINEAR, "2 x / 255 - 1"),
    "clean": (resizing.BICUBIC_CLIPPED, "(x - 128) / 128"),
}

Taps = dict[str, jax.Array]


class ConvUnit(nn.Module):
    """Convolution, bias and ReLU: [B, H, W, in] -> [B, H', W', features]."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dtype: DTypeLike = jnp.float32
    precision: lax.Precision | None = lax.Precision.HIGHEST
    pool: bool = False  # an average over 3x3 pixels before it

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.lecun_normal(), shape).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        if self.kernel == (1, 1):
            x = jnp.matmul(x, kernel[0, 0], precision=self.precision)
        else:
            x = lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=[(pad, pad) for pad in self.padding],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                precision=self.precision,
            )
        return nn.relu((average_pool(x) if self.pool else x) + bias)


class Block(nn.Module):
    """What the Inception blocks share: the settings of their units."""

    dtype: DTypeLike
    precision: lax.Precision | None

    def unit(
        self, name: str, features: int, kernel: Sequence[int] = (1, 1), stride: int = 1, pool: bool = False
    ) -> Any:
        """A unit of this block; without a stride it keeps the size."""
        height, width = kernel
        padding = (height // 2, width // 2) if stride == 1 else (0, 0)
        settings = {"dtype": self.dtype, "precision": self.precision, "pool": pool, "name": name}
        return ConvUnit(features, (height, width), stride, padding, **settings)


class BlockA(Block):
    """Mixed_5b, 5c, 5d (35 x 35)."""

    pool_features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        five = self.unit("branch5x5_2", 64, (5, 5))(self.unit("branch5x5_1", 48)(x))
        double = self.unit("branch3x3dbl_2", 96, (3, 3))(self.unit("branch3x3dbl_1", 64)(x))
        double = self.unit("branch3x3dbl_3", 96, (3, 3))(double)
        pool = self.unit("branch_pool", self.pool_features, pool=True)(x)
        return jnp.concatenate([self.unit("branch1x1", 64)(x), five, double, pool], axis=-1)


class BlockB(Block):
    """Mixed_6a (35 x 35 to 17 x 17)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        double = self.unit("branch3x3dbl_2", 96, (3, 3))(self.unit("branch3x3dbl_1", 64)(x))
        double = self.unit("branch3x3dbl_3", 96, (3, 3), stride=2)(double)
        return jnp.concatenate([self.unit("branch3x3", 384, (3, 3), stride=2)(x), double, max_pool(x, 2)], axis=-1)


class BlockC(Block):
    """Mixed_6b to 6e (17 x 17): 7x7 convolutions as pairs of 1x7 and 7x1.

    Returns the block's output and that of its branch1x1.
    """

    inner: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        one = self.unit("branch1x1", 192)(x)
        seven = self.unit("branch7x7_2", self.inner, (1, 7))(self.unit("branch7x7_1", self.inner)(x))
        seven = self.unit("branch7x7_3", 192, (7, 1))(seven)
        double = self.unit("branch7x7dbl_1", self.inner)(x)
        for index, kernel in enumerate([(7, 1), (1, 7), (7, 1)]):
            double = self.unit(f"branch7x7dbl_{index + 2}", self.inner, kernel)(double)
        double = self.unit("branch7x7dbl_5", 192, (1, 7))(double)
        pool = self.unit("branch_pool", 192, pool=True)(x)
        return jnp.concatenate([one, seven, double, pool], axis=-1), one


class BlockD(Block):
    """Mixed_7a (17 x 17 to 8 x 8)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = self.unit("branch3x3_2", 320, (3, 3), stride=2)(self.unit("branch3x3_1", 192)(x))
        seven = self.unit("branch7x7x3_2", 192, (1, 7))(self.unit("branch7x7x3_1", 192)(x))
        seven = self.unit("branch7x7x3_3", 192, (7, 1))(seven)
        seven = self.unit("branch7x7x3_4", 192, (3, 3), stride=2)(seven)
        return jnp.concatenate([three, seven, max_pool(x, 2)], axis=-1)


class BlockE(Block):
    """Mixed_7b (average pool) and 7c (maximum pool), 8 x 8."""

    maximum: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        three = self.unit("branch3x3_1", 384)(x)
        double = self.unit("branch3x3dbl_2", 384, (3, 3))(self.unit("branch3x3dbl_1", 448)(x))
        pooled = max_pool(x, 1) if self.maximum else x
        branches = [
            self.unit("branch1x1", 320)(x),
            self.unit("branch3x3_2a", 384, (1, 3))(three),
            self.unit("branch3x3_2b", 384, (3, 1))(three),
            self.unit("branch3x3dbl_3a", 384, (1, 3))(double),
            self.unit("branch3x3dbl_3b", 384, (3, 1))(double),
            self.unit("branch_pool", 192, pool=not self.maximum)(pooled),
        ]
        return jnp.concatenate(branches, axis=-1)


class Inception(nn.Module):
    """Features of images uint8 [B, H, W, 3] of any size.

    __call__ returns float32 arrays: pool [B, 2048] (FID), logits and logits_unbiased [B, 1008] (the Inception Score
    uses those without the bias), spatial [B, 2023] (sFID: 7 channels of Mixed_6d.branch1x1 in the order H, W, C) and
    the averages "64", "192" and "768" after the first and second pool and after Mixed_6e. With `unrounded` the images
    are float32, levels from 0 to 255 as they were drawn. Raises ValueError for other images.

    Attributes:
      preprocessing: a key of `PREPROCESSING`: "tf" is that of the original, of ADM, EDM and torch-fidelity.
      fast: convolutions in bfloat16 at the default precision, for monitoring; the default is float32 as exact as the
        device can (accelerators round float32 convolutions to TF32 or bfloat16 unless asked not to).
    """

    preprocessing: str = "tf"
    fast: bool = False

    @nn.compact
    def __call__(self, images: jax.Array, unrounded: bool = False) -> Taps:
        dtype = jnp.bfloat16 if self.fast else jnp.float32
        precision = None if self.fast else lax.Precision.HIGHEST
        shared = {"dtype": dtype, "precision": precision}
        taps: Taps = {}
        x = self._network_input(checked_batch(images, dtype="float32" if unrounded else "uint8")).astype(dtype)

        x = ConvUnit(32, (3, 3), 2, **shared, name="Conv2d_1a_3x3")(x)
        x = ConvUnit(32, (3, 3), **shared, name="Conv2d_2a_3x3")(x)
        x = ConvUnit(64, (3, 3), 1, (1, 1), **shared, name="Conv2d_2b_3x3")(x)
        x = max_pool(x, 2)
        taps["64"] = _spatial_mean(x)
        x = ConvUnit(80, **shared, name="Conv2d_3b_1x1")(x)
        x = ConvUnit(192, (3, 3), **shared, name="Conv2d_4a_3x3")(x)
        x = max_pool(x, 2)
        taps["192"] = _spatial_mean(x)
        for letter, pool_features in zip("bcd", (32, 64, 64), strict=True):
            x = BlockA(**shared, pool_features=pool_features, name=f"Mixed_5{letter}")(x)
        x = BlockB(**shared, name="Mixed_6a")(x)
        for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True):
            x, one = BlockC(**shared, inner=inner, name=f"Mixed_6{letter}")(x)
            if letter == "d":
                taps["spatial"] = one[..., :SPATIAL_CHANNELS].reshape(len(one), -1).astype(jnp.float32)
        taps["768"] = _spatial_mean(x)
        x = BlockD(**shared, name="Mixed_7a")(x)
        x = BlockE(**shared, maximum=False, name="Mixed_7b")(x)
        x = BlockE(**shared, maximum=True, name="Mixed_7c")(x)
        taps["pool"] = _spatial_mean(x)
        # the last layer is cheap, so it is exact in any case
        unbiased, bias = Logits(name="fc")(taps["pool"])
        return taps | {"logits_unbiased": unbiased, "logits": unbiased + bias}

    def _network_input(self, images: jax.Array) -> jax.Array:
        manner, scaling = PREPROCESSING[self.preprocessing]
        x = resizing.resize(images, SIZE, SIZE, manner)
        return (x - 128) / 128 if scaling == "(x - 128) / 128" else 2 * (x / 255) - 1


class Logits(nn.Module):
    """[B, 2048] -> logits without their bias [B, 1008], and the bias [1008]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], CLASSES))
        bias = self.param("bias", nn.initializers.zeros, (CLASSES,))
        return jnp.matmul(x, kernel, precision=lax.Precision.HIGHEST), bias


def max_pool(x: jax.Array, stride: int) -> jax.Array:
    """3x3 maximum: without padding at stride 2, with padding that never wins at stride 1.

    By rows and then columns, as maxima of shifted arrays: XLA's windowed reduction is several times slower on a CPU.
    """
    if stride == 1:
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    for axis in (1, 2):
        first, second, third = _shifted(x, axis, stride)
        x = jnp.maximum(jnp.maximum(first, second), third)
    return x


def average_pool(x: jax.Array) -> jax.Array:
    """3x3 mean at stride 1 over the pixels that exist: TensorFlow's SAME padding does not count."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for axis in (1, 2):
        first, second, third = _shifted(x, axis, 1)
        x = first + second + third
    counts = np.full((height, width, 1), 9.0)
    counts[[0, -1]] -= 3
    counts[:, [0, -1]] *= 2 / 3
    return x / jnp.asarray(counts, x.dtype)


def _shifted(x: jax.Array, axis: int, stride: int) -> list[jax.Array]:
    """The three pixels that each window of three along the axis sees."""
    last = x.shape[axis] - 2
    return [lax.slice_in_dim(x, start, start + last, stride, axis) for start in range(3)]


def _spatial_mean(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32).mean(axis=(1, 2))
