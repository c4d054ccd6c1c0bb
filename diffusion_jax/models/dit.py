"""The diffusion transformer, DiT (Peebles & Xie 2023, arXiv:2212.09748), which is also SiT's network.

The sizes of the paper; patch size 2 is the best of each, 4 and 8 cost less:

            width   depth   num_heads
    DiT-S     384      12           6
    DiT-B     768      12          12
    DiT-L    1024      24          16
    DiT-XL   1152      28          16

The paper runs it on Stable Diffusion's latents (32x32x4 for images of 256 pixels) with twice the latent's channels out,
for a learnt variance. SiT (Ma et al. 2024, arXiv:2401.08740) is the same network trained on velocities of a flow, told
the flow's time in [0, 1] as it is.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.attention import dot_product_attention
from diffusion_jax.models.layers import Dense, Dropout, Initializer, matmul, timestep_embedding
from diffusion_jax.models.once import computed_once
from diffusion_jax.models.remat import check_remat
from diffusion_jax.models.scanned import apply_layers
from diffusion_jax.options import described

FREQUENCIES = 256  # of the time embedding, sines and cosines


@dataclasses.dataclass(frozen=True)
class DiTOptions:
    """What all blocks of one network share; the fields are those of :class:`DiT`."""

    num_heads: int
    mlp_ratio: float
    num_classes: int | None
    freq_shift: float
    mlp_norm_eps: float
    dropout: float
    dtype: DTypeLike

    def dense(self, features: int, name: str, init: Initializer | None = None) -> Dense:
        """Initialised by Xavier's rule ("ddpm") unless told otherwise; biases start at zero."""
        return Dense(features, "ddpm", False, self.dtype, init, name=name)

    def norm(self, x: jax.Array, epsilon: float = 1e-6) -> jax.Array:
        """Layer normalisation without parameters, its statistics in float32."""
        norm = nn.LayerNorm(epsilon, use_bias=False, use_scale=False, use_fast_variance=False, dtype=self.dtype)
        return norm(x)


@described(
    patch_size="the image becomes one token for each square of so many pixels",
    width="channels of a token",
    depth="transformer blocks",
    num_heads="heads of each attention",
    mlp_ratio="width of the dense layers of a block, in units of width",
    image_size=(
        "size at which positions are whole numbers of patches, larger images lie in between; None: that of the images"
    ),
    shared_conditioning="one embedding of time and class for all blocks, as in the paper; False: one for each block",
    freq_shift="of the frequencies of the time embedding; 0 in the paper, 1 in diffusers",
    mlp_norm_eps="of the normalisation before the second half of a block; the others have 1e-6",
    dropout="share of activations that training drops, behind the attention and inside the dense layers",
    remat="what the backward pass keeps: none (everything), dots, dots_no_batch, full (nothing, and computes again)",
    scan_layers="the blocks are compiled once and run in a loop over stacked parameters",
)
class DiT(nn.Module):
    """Predicts an image-shaped quantity from a noisy image (or latent) and its time.

    The defaults of the options are DiT-S/2. What the data and the method decide:

    - out_channels: twice the image's for networks that also learn a variance.
    - num_classes: None for an unconditional network. The label num_classes is the null class.
    - dtype: of the computation. Parameters, normalisation statistics, softmax and output are float32.
    """

    out_channels: int = 4
    patch_size: int = 2
    width: int = 384
    depth: int = 12
    num_heads: int = 6
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    image_size: int | None = None
    shared_conditioning: bool = True
    freq_shift: float = 0.0
    mlp_norm_eps: float = 1e-6
    dropout: float = 0.0
    remat: str = "none"
    scan_layers: bool = False
    dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(
        self,
        hidden_states: jax.Array,
        timestep: jax.Array,
        class_labels: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The prediction [B, H, W, out_channels], float32.

        Args:
          hidden_states: noisy images or latents [B, H, W, C].
          timestep: scalar or [B], integer or float, on the scale the network was trained with (DiT: 0..999, SiT: 0..1).
          class_labels: int32 [B], for a network with classes only; num_classes is the null class.
          train: applies dropout, from the PRNG stream "dropout".

        Raises:
          ValueError: fields or shapes that cannot work together, labels missing or unexpected.
        """
        batch, height, width, image_channels = hidden_states.shape
        for size in (height, width):
            self.validate(size, image_channels)
        checks.check_labels(self.num_classes, class_labels)
        options = self._options()
        time = jnp.broadcast_to(jnp.asarray(timestep), (batch,))

        p, grid = self.patch_size, (height // self.patch_size, width // self.patch_size)
        h = PatchEmbedding(self.width, p, options.dtype, name="patch_embedding")(hidden_states)
        base = grid if self.image_size is None else (self.image_size // p, self.image_size // p)
        h = h + jnp.asarray(position_embedding(grid, base, self.width), h.dtype)

        shared = self.shared_conditioning
        names = ["conditioning"] if shared else [f"conditioning_{i}" for i in range(self.depth)]
        conditions = [Conditioning(self.width, options, name=name)(time, class_labels) for name in names]
        h = apply_layers(
            DiTBlock,
            [(options,)] * self.depth,
            "blocks",
            lambda block, h, own: block(h, conditions[0] if shared else own, train),
            h,
            None if shared else jnp.stack(conditions),
            scan=self.scan_layers,
            remat=self.remat,
            static_argnums=(3,),
        )

        zeros = nn.initializers.zeros
        shift, scale = _split(options.dense(2 * self.width, "output_modulation", zeros)(conditions[0]), 2)
        h = options.norm(h) * (1 + scale) + shift
        h = options.dense(p * p * self.out_channels, "output", zeros)(h)
        h = h.reshape(batch, *grid, p, p, self.out_channels).swapaxes(2, 3)
        return h.reshape(batch, height, width, -1).astype(jnp.promote_types(options.dtype, jnp.float32))

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """Raises ValueError, one line, if the fields cannot work together or with images of that size."""
        checks.check_counts(
            self,
            ("out_channels", "patch_size", "width", "depth", "num_heads"),
            optional=("num_classes", "image_size"),
        )
        checks.check_image(image_size, channels)
        checks.check_dropout(self.dropout)
        checks.check_dtype(self.dtype)
        check_remat(self.remat)
        for field, size in (("image_size", image_size), ("model image_size", self.image_size or self.patch_size)):
            if size % self.patch_size:
                raise ValueError(f"{field}={size}: it must be a multiple of patch_size={self.patch_size}")
        if self.width % 4:
            raise ValueError(f"width={self.width}: the embedding of positions needs a multiple of 4")
        if self.width % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide width={self.width}")
        if not self.mlp_ratio * self.width >= 1:
            raise ValueError(f"mlp_ratio={self.mlp_ratio}: it must be positive")
        if not self.mlp_norm_eps > 0:
            raise ValueError(f"mlp_norm_eps={self.mlp_norm_eps!r}: it must be positive")

    @nn.nowrap
    def _options(self) -> DiTOptions:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(DiTOptions)}
        return DiTOptions(**{**values, "dtype": jnp.dtype(self.dtype)})


class DiTBlock(nn.Module):
    """Self-attention and MLP with adaLN-Zero (section 3.2): the condition scales and shifts each normalisation and
    gates each residual, and all three start at zero, so that a fresh block is the identity.
    """

    options: DiTOptions

    @nn.compact
    def __call__(self, h: jax.Array, condition: jax.Array, train: bool) -> jax.Array:
        """h: tokens [B, N, width]; condition: [B, width], its SiLU applied."""
        o, width = self.options, h.shape[-1]
        dropout = Dropout(o.dropout, deterministic=not train)
        modulation = o.dense(6 * width, "modulation", nn.initializers.zeros)(condition)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = _split(modulation, 6)

        tokens = o.norm(h) * (1 + scale) + shift
        # The paper's code draws query, key and value as one kernel [width, 3 width] by Xavier's rule.
        init = nn.initializers.variance_scaling(0.5, "fan_avg", "uniform")
        q, k, v = (o.dense(width, name, init)(tokens) for name in ("to_q", "to_k", "to_v"))
        attended = dot_product_attention(q, k, v, o.num_heads)
        h = computed_once(h + gate * dropout(o.dense(width, "to_out")(attended)))

        tokens = o.norm(h, o.mlp_norm_eps) * (1 + mlp_scale) + mlp_shift
        tokens = nn.gelu(o.dense(int(o.mlp_ratio * width), "mlp_1")(tokens), approximate=True)
        return computed_once(h + mlp_gate * o.dense(width, "mlp_2")(dropout(tokens)))


class Conditioning(nn.Module):
    """Time and class as one vector: time [B], labels int32 [B] or None -> [B, features], a SiLU applied."""

    features: int
    options: DiTOptions

    @nn.compact
    def __call__(self, time: jax.Array, class_labels: jax.Array | None) -> jax.Array:
        o, init = self.options, nn.initializers.normal(0.02)
        embedding = timestep_embedding(time, FREQUENCIES, flip_sin_to_cos=True, freq_shift=o.freq_shift)
        embedding = o.dense(self.features, "time_1", init)(embedding)
        embedding = o.dense(self.features, "time_2", init)(nn.silu(embedding))
        if o.num_classes is not None:
            embed = nn.Embed(
                o.num_classes + 1, self.features, embedding_init=init, dtype=o.dtype, name="class_embedding"
            )
            embedding = embedding + embed(jnp.asarray(class_labels))
        return nn.silu(embedding)


class PatchEmbedding(nn.Module):
    """[B, H, W, C] -> one token for each patch, row by row: [B, HW / patch_size^2, features].

    A convolution of stride patch_size, kernel [patch_size, patch_size, C, features], computed as one matrix product.
    """

    features: int
    patch_size: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        p = self.patch_size

        def init(key: jax.Array, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
            return nn.initializers.xavier_uniform()(key, (p * p * channels, self.features), dtype).reshape(shape)

        kernel = self.param("kernel", init, (p, p, channels, self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        patches = x.astype(self.dtype).reshape(batch, height // p, p, width // p, p, channels).swapaxes(2, 3)
        patches = patches.reshape(batch, -1, p * p * channels)
        return matmul(patches, kernel.reshape(-1, self.features).astype(self.dtype)) + bias.astype(self.dtype)


def position_embedding(grid: tuple[int, int], base: tuple[int, int], width: int) -> np.ndarray:
    """Sines and cosines of each patch's place, float64 [rows * columns, width].

    The first half of the width encodes the column, the second the row, each by sines and then cosines at frequencies
    10000^(-i / (width / 4)). base: the number of patches an axis that the network was made for; on other grids places
    are scaled to it.
    """
    places = (np.arange(count) * made_for / count for count, made_for in zip(grid, base, strict=True))
    rows, columns = (encode_places(place, width) for place in places)
    return np.concatenate([np.tile(columns, (grid[0], 1)), np.repeat(rows, grid[1], axis=0)], axis=1)


def encode_places(places: np.ndarray, width: int) -> np.ndarray:
    """Sines and cosines of places along one axis, [count] -> float64 [count, width / 2]."""
    quarter = width // 4
    angles = places[:, None] * 10_000.0 ** (-np.arange(quarter) / quarter)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _split(modulation: jax.Array, parts: int) -> list[jax.Array]:
    """[B, parts * width] -> parts of [B, 1, width], to be applied to tokens."""
    return jnp.split(modulation[:, None, :], parts, axis=-1)
