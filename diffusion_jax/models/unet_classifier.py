"""The classifier of noisy images that guides ADM: the way down and the middle of its U-Net, and a pool to logits.

Dhariwal & Nichol 2021 (arXiv:2105.05233, section 4 and table 12), ``EncoderUNetModel`` of guided-diffusion. The field
defaults are those for ImageNet at 64x64, but for num_res_blocks, which is four there and two at other sizes.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.models import checks
from diffusion_jax.models.attention import dot_product_attention
from diffusion_jax.models.blocks import BlockOptions
from diffusion_jax.models.layers import GroupNorm, Initialization
from diffusion_jax.models.unet import UNetEncoder
from diffusion_jax.options import described

POOLS = ("attention", "adaptive", "spatial", "spatial_v2")
# of the layer between the two of the spatial pools
HIDDEN = 2048


@described(
    pool="of the last features: attention (as the released classifiers), adaptive, spatial or spatial_v2",
)
class UNetClassifier(UNetEncoder):
    """Logits of the classes of noisy images.

    num_classes is how many are told apart. pool: "attention" (the mean looks at all pixels of the lowest resolution, as
    in CLIP, Radford et al. 2021), "adaptive" (the mean of these pixels), "spatial" and "spatial_v2" (the means of every
    block and two dense layers, with a ReLU or with a group norm and SiLU between them).
    """

    num_classes: int = 1000
    pool: str = "attention"
    channel_mults: tuple[float, ...] = (1, 2, 3, 4)
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    head_channels: int | None = 64
    resample: str = "resblock"
    downsample_padding: int = 1
    scale_shift_norm: bool = True
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    dropout: float = 0.0
    initialization: Initialization = "pytorch"

    @nn.compact
    def __call__(self, sample: jax.Array, timestep: jax.Array, train: bool = False) -> jax.Array:
        """Unnormalised log-probabilities [B, num_classes], float32.

        Args:
          sample: noisy images [B, H, W, C], of one size for "attention", which has an embedding for each place.
          timestep: scalar or [B], on the scale the network was trained with.
          train: applies dropout, from the PRNG stream "dropout".

        Raises:
          ValueError: fields or shapes that cannot work together.
        """
        for size in sample.shape[1:3]:
            self.validate(size, sample.shape[-1])
        h, outputs = self.encode(sample, self.embed_time(timestep, len(sample)), train)
        # As in the released code, what follows the middle is float32 whatever the compute dtype.
        options = dataclasses.replace(self.block_options(), dtype=jnp.promote_types(self.dtype, jnp.float32))
        h = h.astype(options.dtype)
        if self.pool.startswith("spatial"):
            means = [output.astype(options.dtype).mean((1, 2)) for output in (*outputs, h)]
            h = options.dense(HIDDEN, "hidden")(jnp.concatenate(means, -1))
            if self.pool == "spatial":
                h = nn.relu(h)
            else:
                norm = GroupNorm(self.norm_groups, self.norm_eps, options.dtype, name="hidden_norm")
                h = nn.silu(norm(h[:, None, None])[:, 0, 0])
            return options.dense(self.num_classes, "out")(h)
        h = nn.silu(options.norm("conv_norm_out")(h))
        if self.pool == "attention":
            return AttentionPool(self.num_classes, options, name="pool")(h)
        return options.dense(self.num_classes, "out", last=True)(h.mean((1, 2)))

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        """As :meth:`UNetEncoder.validate`."""
        checks.check_counts(self, ("num_classes",))
        checks.check_choice("pool", self.pool, POOLS)
        super().validate(image_size, channels)
        if self.pool == "attention" and self.image_size not in (None, image_size):
            raise ValueError(
                f"image_size={image_size}: pool='attention' has an embedding for each place of images of"
                f" {self.image_size} pixels; other pools take any size"
            )
        if self.pool == "spatial_v2" and HIDDEN % self.norm_groups:
            raise ValueError(f"norm_groups={self.norm_groups}: pool='spatial_v2' needs a divisor of {HIDDEN}")


class AttentionPool(nn.Module):
    """[B, H, W, C] -> [B, features]: the mean of the pixels, itself among them, attends to them all."""

    features: int
    options: BlockOptions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        o = self.options
        batch, height, width, channels = x.shape
        pixels = x.reshape(batch, height * width, channels)
        tokens = jnp.concatenate([pixels.mean(1, keepdims=True), pixels], 1)
        init = nn.initializers.normal(channels**-0.5)
        tokens = tokens + self.param("positional_embedding", init, tokens.shape[1:], jnp.float32)
        query = o.dense(channels, "to_q")(tokens[:, :1])
        key, value = (o.dense(channels, name)(tokens) for name in ("to_k", "to_v"))
        heads = o.num_heads if o.head_channels is None else channels // o.head_channels
        return o.dense(self.features, "to_out_0")(dot_product_attention(query, key, value, heads))[:, 0]
