"""The vision transformer that DINOv2 and CLIP share (Dosovitskiy et al. 2021), for inference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a vision transformer is made of.

    Attributes:
      width, depth, heads: of the transformer.
      hidden: width inside of the feed-forward layers.
      patch: side of a patch in pixels.
      grid: patches along a side of the images of the training; for others, position embeddings are interpolated.
      activation: "gelu" (exact), "quick_gelu" (x sigmoid(1.702 x), CLIP) or "swiglu" (DINOv2 ViT-g).
      epsilon: of the layer normalisations.
      patch_bias: whether patches have a bias (DINOv2).
      pre_norm: whether a normalisation comes before the blocks (CLIP).
      layer_scale: whether branches are scaled by channel (DINOv2).
      projection: width of the output after a last linear layer (CLIP); None for none.
      interpolation_offset: position embeddings are interpolated as if to a grid larger by this. 0.1 in the original
        DINOv2, 0 in other implementations, which differ by 0.26 (rms, at unit variance).
    """

    width: int
    depth: int
    heads: int
    hidden: int
    patch: int
    grid: int
    activation: str
    epsilon: float
    patch_bias: bool
    pre_norm: bool
    layer_scale: bool
    projection: int | None
    interpolation_offset: float = 0.0


class Linear(nn.Module):
    """A linear layer over the last axis."""

    features: int
    fast: bool
    bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        precision = None if self.fast else lax.Precision.HIGHEST
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features)).astype(x.dtype)
        x = jnp.matmul(x, kernel, precision=precision)
        return x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype) if self.bias else x


class Block(nn.Module):
    """Self-attention and feed-forward layer, each on the normalised input and added to it: [B, N, width]."""

    architecture: Architecture
    fast: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self._scaled(self._attention(_norm(self.architecture, x, "norm1")), "scale1")
        return x + self._scaled(self._feed_forward(_norm(self.architecture, x, "norm2")), "scale2")

    def _attention(self, x: jax.Array) -> jax.Array:
        (batch, length, width), heads = x.shape, self.architecture.heads
        precision = None if self.fast else lax.Precision.HIGHEST
        joint = Linear(3 * width, self.fast, name="attention_in")(x).reshape(batch, length, 3, heads, width // heads)
        query, key, value = jnp.moveaxis(joint, 2, 0)
        scores = jnp.einsum("bqhc,bkhc->bhqk", query * (width // heads) ** -0.5, key, precision=precision)
        attention = nn.softmax(scores.astype(jnp.float32), axis=-1).astype(x.dtype)
        out = jnp.einsum("bhqk,bkhc->bqhc", attention, value, precision=precision).reshape(x.shape)
        return Linear(width, self.fast, name="attention_out")(out)

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        hidden, activation = self.architecture.hidden, self.architecture.activation
        h = Linear(2 * hidden if activation == "swiglu" else hidden, self.fast, name="mlp_in")(x)
        if activation == "swiglu":
            gate, h = jnp.split(h, 2, axis=-1)
            h = nn.silu(gate) * h
        else:
            h = h * nn.sigmoid(1.702 * h) if activation == "quick_gelu" else nn.gelu(h, approximate=False)
        return Linear(x.shape[-1], self.fast, name="mlp_out")(h)

    def _scaled(self, x: jax.Array, name: str) -> jax.Array:
        if not self.architecture.layer_scale:
            return x
        return x * self.param(name, nn.initializers.ones, (x.shape[-1],)).astype(x.dtype)


class VisionTransformer(nn.Module):
    """Images float [B, H, W, 3], sides multiples of the patch -> the class token of the last layer, normalised.

    float32 [B, width], or [B, projection]. With `fast` it computes in bfloat16 at the default precision, in place of
    float32 at the highest.
    """

    architecture: Architecture
    fast: bool = False

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        a, dtype = self.architecture, jnp.bfloat16 if self.fast else jnp.float32
        batch, height, width, channels = images.shape
        rows, columns = height // a.patch, width // a.patch
        patches = images.astype(dtype).reshape(batch, rows, a.patch, columns, a.patch, channels).swapaxes(2, 3)
        x = Linear(a.width, self.fast, a.patch_bias, name="patch")(patches.reshape(batch, rows * columns, -1))
        token = self.param("class_token", nn.initializers.zeros, (a.width,)).astype(dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (batch, 1, a.width)), x], axis=1)
        x = x + self._positions(rows, columns, dtype)
        x = _norm(a, x, "pre_norm") if a.pre_norm else x
        for index in range(a.depth):
            x = Block(a, self.fast, name=f"block_{index}")(x)
        out = _norm(a, x[:, 0], "norm").astype(jnp.float32)
        return Linear(a.projection, False, bias=False, name="projection")(out) if a.projection else out

    def _positions(self, rows: int, columns: int, dtype: DTypeLike) -> jax.Array:
        """[1 + rows * columns, width], interpolated where the grid is not that of the training."""
        a = self.architecture
        table = self.param("positions", nn.initializers.normal(0.02), (1 + a.grid**2, a.width))
        if (rows, columns) == (a.grid, a.grid):
            return table.astype(dtype)
        down, across = (interpolation_matrix(a.grid, size, a.interpolation_offset) for size in (rows, columns))
        grid = table[1:].reshape(a.grid, a.grid, a.width)
        grid = jnp.einsum("oi,pj,ijc->opc", down, across, grid, precision="highest")
        return jnp.concatenate([table[:1], grid.reshape(rows * columns, a.width)]).astype(dtype)


def interpolation_matrix(source: int, target: int, offset: float) -> NDArray[np.float32]:
    """[target, source]: PyTorch's bicubic interpolation at the scale (target + offset) / source.

    Its cubic has a = -0.75 and no antialiasing; pixels beyond the border are those of the border.
    """
    place = (np.arange(target) + 0.5) * (source / (target + offset)) - 0.5
    low = np.floor(place).astype(np.int64)
    matrix = np.zeros((target, source))
    for step in (-1, 0, 1, 2):
        distance = np.abs(place - (low + step))
        inner = (1.25 * distance - 2.25) * distance**2 + 1
        outer = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
        weight = np.where(distance <= 1, inner, outer)
        np.add.at(matrix, (np.arange(target), np.clip(low + step, 0, source - 1)), weight)
    return matrix.astype(np.float32)


def _norm(architecture: Architecture, x: jax.Array, name: str) -> jax.Array:
    # the fast variance, E[x^2] - E[x]^2, loses digits
    return nn.LayerNorm(architecture.epsilon, dtype=x.dtype, use_fast_variance=False, name=name)(x)
