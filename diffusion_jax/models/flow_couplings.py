"""Affine couplings: half of the values change, by what the other half says (Dinh et al. 2017, section 3.2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models.flow_layers import Transformed
from diffusion_jax.models.layers import Conv, Dense, Dropout

COUPLINGS = ("convolutional", "dense")
CHECKERBOARDS = ("even", "odd")
HALVES = ("first_channels", "last_channels")
# The scale sigmoid(raw + 2) starts at 0.88 (Kingma and Dhariwal 2018, released code). It is kept above 0, by which the
# way back would divide.
_SIGMOID_SHIFT, _LEAST_SCALE = 2.0, 1e-3


class CouplingNet(nn.Module):
    """Two hidden layers with the class added to the first, [B, H, W, C] -> [B, H, W, out_channels].

    "convolutional" layers are of 3x3, 1x1 and 3x3 pixels, as Glow's; "dense" ones see the whole image at once. The last
    one starts at zero.

    Fields: out_channels; kind; width of the hidden layers; num_classes, None for none; dropout of the hidden layers;
    dtype of the computation.
    """

    out_channels: int
    kind: str
    width: int
    num_classes: int | None = None
    dropout: float = 0.0
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, kept: jax.Array, class_labels: jax.Array | None, train: bool = False) -> jax.Array:
        shape = (*kept.shape[:-1], self.out_channels)
        first, middle = self._layer(3, self.width, "conv_1"), self._layer(1, self.width, "conv_2")
        h = first(kept.reshape(len(kept), -1) if self.kind == "dense" else kept)
        if self.num_classes is not None:
            embed = nn.Embed(self.num_classes, self.width, dtype=self.dtype, name="class_embedding")
            h = h + embed(jnp.asarray(class_labels)).reshape(len(kept), *(1,) * (h.ndim - 2), -1)
        h = Dropout(self.dropout, deterministic=not train)(nn.relu(h))
        h = Dropout(self.dropout, deterministic=not train)(nn.relu(middle(h)))
        out = int(np.prod(shape[1:])) if self.kind == "dense" else self.out_channels
        return self._layer(3, out, "conv_3", last=True)(h).reshape(shape).astype(kept.dtype)

    def _layer(self, size: int, features: int, name: str, last: bool = False) -> nn.Module:
        if self.kind == "dense":
            return Dense(features, "pytorch", last, self.dtype, name=name.replace("conv", "dense"))
        padding = size // 2
        return Conv(features, size, 1, padding, "pytorch", last, self.dtype, name=name)


class AffineCoupling(nn.Module):
    """y = (x + shift) * scale of the values that change, where shift and scale follow from those that do not.

    Fields: mask, what changes: the "first_channels" or "last_channels" of two halves, or the pixels of a checkerboard
    whose row plus column is "even" or "odd"; scaling, how the network's output r becomes a scale: "sigmoid" of r + 2
    (Glow), or "tanh", exp(a tanh(r)) with an `a` that is learnt for each channel (RealNVP); the rest as `CouplingNet`.
    """

    mask: str
    scaling: str
    kind: str
    width: int
    num_classes: int | None = None
    dropout: float = 0.0
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self, x: jax.Array, class_labels: jax.Array | None = None, reverse: bool = False, train: bool = False
    ) -> Transformed:
        if self.mask in CHECKERBOARDS:
            changes = _checkerboard(x.shape[1:3], self.mask)
            kept, changed = jnp.where(changes, 0, x), x
        else:
            changes = True
            first, last = jnp.split(x, [x.shape[-1] // 2], axis=-1)
            kept, changed = (first, last) if self.mask == "last_channels" else (last, first)
        channels = changed.shape[-1]
        net = CouplingNet(2 * channels, self.kind, self.width, self.num_classes, self.dropout, self.dtype, name="net")
        raw, shift = jnp.split(net(kept, class_labels, train), 2, axis=-1)
        log_scale, shift = jnp.where(changes, self._log_scale(raw), 0), jnp.where(changes, shift, 0)
        log_det = log_scale.sum((1, 2, 3))
        if reverse:
            changed, log_det = changed * jnp.exp(-log_scale) - shift, -log_det
        else:
            changed = (changed + shift) * jnp.exp(log_scale)
        if self.mask in CHECKERBOARDS:
            return changed, log_det
        parts = (kept, changed) if self.mask == "last_channels" else (changed, kept)
        return jnp.concatenate(parts, axis=-1), log_det

    def _log_scale(self, raw: jax.Array) -> jax.Array:
        if self.scaling == "sigmoid":
            return jnp.log(nn.sigmoid(raw + _SIGMOID_SHIFT) + _LEAST_SCALE)
        return self.param("scale", nn.initializers.ones, (raw.shape[-1],), jnp.float32) * jnp.tanh(raw)


class GaussianPrior(nn.Module):
    """Takes values to a standard normal, given what is kept beside them and the class: y = (x - mean) / deviation.

    Mean and deviation follow from one layer on `beside` [B, H, W, C'] (Glow's learned prior of what is split off), or
    are numbers for each class and value where nothing is beside. At first they are 0 and 1.
    """

    kind: str
    num_classes: int | None = None

    @nn.compact
    def __call__(
        self, x: jax.Array, beside: jax.Array | None, class_labels: jax.Array | None, reverse: bool = False
    ) -> Transformed:
        shape = (*x.shape[1:-1], 2 * x.shape[-1])
        zeros = nn.initializers.zeros
        moments = jnp.zeros((1, *shape), x.dtype)
        if beside is not None and self.kind == "dense":
            layer = Dense(int(np.prod(shape)), "pytorch", last=True, dtype=x.dtype, name="dense")
            moments = layer(beside.reshape(len(x), -1)).reshape(-1, *shape)
        elif beside is not None:
            moments = Conv(shape[-1], initialization="pytorch", last=True, dtype=x.dtype, name="conv")(beside)
        if self.num_classes is not None:
            embed = nn.Embed(self.num_classes, int(np.prod(shape)), embedding_init=zeros, name="class_embedding")
            moments = moments + embed(jnp.asarray(class_labels)).reshape(-1, *shape)
        elif beside is None:
            moments = moments + self.param("moments", zeros, shape, jnp.float32)
        mean, log_deviation = jnp.split(jnp.broadcast_to(moments, (len(x), *shape)), 2, axis=-1)
        log_det = -log_deviation.sum((1, 2, 3))
        if reverse:
            return x * jnp.exp(log_deviation) + mean, -log_det
        return (x - mean) * jnp.exp(-log_deviation), log_det


def _checkerboard(shape: tuple[int, ...], mask: str) -> np.ndarray:
    """bool [H, W, 1], the pixels that change."""
    odd = np.indices(shape).sum(0) % 2 == 1
    return (odd == (mask == "odd"))[..., None]
