"""The U-Net of Stable Diffusion, which looks at a text (Rombach et al. 2022, arXiv:2112.10752, and its successors).

sizes                 SD 1.x            SD 2.x            SDXL (arXiv:2307.01952)
attention             T, T, T, F        T, T, T, F        F, T, T
widths                320 640 1280 1280 320 640 1280 1280 320 640 1280
num_heads             8 8 8 8           5 10 20 20        5 10 20
transformer_depth     1 1 1 1           1 1 1 1           1 2 10
width of the context  768               1024              2048
parameters            859,520,964       865,910,724       2,567,463,684
"""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from diffusion_jax.models import checks
from diffusion_jax.models.blocks import BlockOptions, DownBlock, MidBlock, UpBlock
from diffusion_jax.models.layers import ACTIVATIONS, timestep_embedding
from diffusion_jax.models.transformer import TransformerOptions
from diffusion_jax.models.unet import TimeEmbedding

Conditions = Mapping[str, jax.Array]
MID_BLOCKS = ("attention", "resnet", "none")
CLASS_EMBEDDINGS = ("table", "timestep", "projection", "linear")


class ConditionalTrunk(nn.Module):
    """What the U-Net and its ControlNet have in common: the embedding, the way down and the middle.

    Fields, one value a level from the highest resolution to the lowest where they are tuples; the defaults are
    Stable Diffusion 1's:

    - widths: channels of each level; num_res_blocks: of a level on the way down, the way up has one more.
    - attention: whether each residual block of a level is followed by a transformer; transformer_depth: its blocks;
      num_heads: of its attentions; linear_projection: see :class:`diffusion_jax.models.transformer.TransformerOptions`.
      The middle has the depth and heads of the lowest level. only_cross_attention: at which levels the first of a
      block's two attentions looks at the text, too; () for none.
    - mid_block: "attention" between two residual blocks, "resnet" (one residual block alone) or "none"; mid_scale: by
      which its residual blocks divide their sums.
    - time_ids_channels: None, or for SDXL the sines and cosines for each number in ``time_ids``.
    - num_classes: None, or the number of class embeddings (of noise levels, in upscalers).
    - class_embedding: "table", the embeddings of num_classes; "timestep", class_labels are numbers [B] that are
      embedded as times are; "projection" or "linear", they are vectors [B, D] that two dense layers, or one, project.
    - guidance_channels: None, or the width of ``timestep_cond`` in networks that are told their guidance scale (Luo et
      al. 2023, arXiv:2310.04378), see :func:`guidance_embedding`.
    - activation: of residual blocks and of the embedding of time, "silu", "gelu", "mish" or "relu". scale_shift_norm:
      the embedding scales and shifts the second normalisation of a residual block instead of being added before it.
    - center_input: the network sees 2 x - 1.
    - norm_groups, norm_eps: of the group normalisations. flip_sin_to_cos, freq_shift: see
      :func:`diffusion_jax.models.layers.timestep_embedding`. downsample_padding: see
      :class:`diffusion_jax.models.blocks.Downsample`.
    - sample_size: of the latents in training; upcast_attention: that training ran its attention in float32. Neither
      changes the network.
    - dropout: when training. remat: what the backward pass keeps of residual and transformer blocks, see
      :mod:`diffusion_jax.models.remat`. scan_layers: the blocks of a transformer are one loop over stacked
      parameters, see :mod:`diffusion_jax.models.scanned`; attention maps then cannot be asked for.
    - dtype: of the computation. Normalisation statistics, softmax and output are at least float32.
    """

    widths: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    transformer_depth: tuple[int, ...] = (1, 1, 1, 1)
    num_heads: tuple[int, ...] = (8, 8, 8, 8)
    linear_projection: bool = False
    time_ids_channels: int | None = None
    num_classes: int | None = None
    norm_groups: int = 32
    norm_eps: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    downsample_padding: int = 1
    sample_size: int | None = 64
    upcast_attention: bool = False
    dropout: float = 0.0
    remat: str = "none"
    scan_layers: bool = False
    dtype: DTypeLike = "float32"
    only_cross_attention: tuple[bool, ...] = ()
    mid_block: str = "attention"
    mid_scale: float = 1.0
    class_embedding: str = "table"
    guidance_channels: int | None = None
    activation: str = "silu"
    scale_shift_norm: bool = False
    center_input: bool = False

    def embed(
        self,
        timestep: jax.Array,
        batch: int,
        class_labels: jax.Array | None,
        conditions: Conditions | None,
        timestep_cond: jax.Array | None = None,
    ) -> jax.Array:
        """Time, class, guidance scale and SDXL's conditions as one vector: [B, 4 widths[0]]."""
        o = self.options()
        if timestep_cond is not None and timestep_cond.shape != (batch, self.guidance_channels):
            raise ValueError(
                f"timestep_cond {timestep_cond.shape}: guidance_channels={self.guidance_channels}, so it must be"
                f" {None if self.guidance_channels is None else (batch, self.guidance_channels)}"
            )
        time = jnp.broadcast_to(jnp.asarray(timestep), (batch,))
        embed_time = TimeEmbedding(4 * self.widths[0], o, self.activation, name="time_embedding")
        embedding = embed_time(self.sines(time, self.widths[0]), timestep_cond)
        if (classes := self._embed_classes(class_labels)) is not None:
            embedding = embedding + classes
        if self.time_ids_channels is not None:
            features = self._text_time(conditions or {}, batch)
            embedding = embedding + TimeEmbedding(4 * self.widths[0], o, name="add_embedding")(features)
        return embedding

    def _embed_classes(self, class_labels: jax.Array | None) -> jax.Array | None:
        """[B, 4 widths[0]] of the kind that class_embedding says, or None in a network without classes."""
        o, width, name = self.options(), 4 * self.widths[0], "class_embedding"
        if self.class_embedding == "table":
            checks.check_labels(self.num_classes, class_labels)
            if self.num_classes is None:
                return None
            return nn.Embed(self.num_classes, width, dtype=o.dtype, name=name)(jnp.asarray(class_labels))
        if class_labels is None:
            raise ValueError(f"class_embedding={self.class_embedding!r}, but class_labels is None")
        labels = jnp.asarray(class_labels)
        if self.class_embedding == "timestep":
            features = self.sines(labels.astype(jnp.promote_types(labels.dtype, jnp.float32)), self.widths[0])
            return TimeEmbedding(width, o, self.number_activation(), name=name)(features)
        if self.class_embedding == "projection":
            return TimeEmbedding(width, o, name=name)(labels)
        return o.dense(width, name)(labels)

    def down(
        self, h: jax.Array, embedding: jax.Array, context: jax.Array, train: bool
    ) -> tuple[jax.Array, list[jax.Array]]:
        """From the first convolution's output to the lowest resolution, and everything that the way up takes."""
        skips = [h]
        for level, width in enumerate(self.widths):
            last = level == len(self.widths) - 1
            block = DownBlock(
                width, self.num_res_blocks, self.attention[level], not last, self.options(), self.transformer(level),
                name=f"down_blocks_{level}",
            )  # fmt: skip
            h, outputs = block(h, embedding, train, context)
            skips.extend(outputs)
        return h, skips

    def middle(self, h: jax.Array, embedding: jax.Array, context: jax.Array, train: bool) -> jax.Array:
        if self.mid_block == "none":
            return h
        options = dataclasses.replace(self.options(), output_scale=self.mid_scale)
        transformer = dataclasses.replace(self.transformer(-1), text_only=False)
        blocks = 2 if self.mid_block == "attention" else 1
        block = MidBlock(self.widths[-1], True, True, options, transformer, blocks, name="mid_block")
        return block(h, embedding, train, context)

    @nn.nowrap
    def number_activation(self) -> str:
        """Of the embedding of numbers that class_embedding="timestep" has."""
        return self.activation

    @nn.nowrap
    def sines(self, numbers: jax.Array, channels: int) -> jax.Array:
        return timestep_embedding(
            numbers, channels, flip_sin_to_cos=self.flip_sin_to_cos, freq_shift=self.freq_shift
        )  # fmt: skip

    @nn.nowrap
    def _text_time(self, conditions: Conditions, batch: int) -> jax.Array:
        """SDXL's micro-conditioning (section 2.2): the pooled text beside sines of sizes and crops."""
        if set(conditions) != {"text_embeds", "time_ids"}:
            raise ValueError(
                f"added_cond_kwargs holds {', '.join(conditions) or 'nothing'}; this network needs text_embeds and"
                " time_ids"
            )
        assert self.time_ids_channels is not None
        ids = conditions["time_ids"]
        sines = self.sines(jnp.asarray(ids).reshape(-1), self.time_ids_channels).reshape(batch, -1)
        return jnp.concatenate([conditions["text_embeds"], sines], axis=-1)

    @nn.nowrap
    def options(self) -> BlockOptions:
        return BlockOptions(
            num_heads=1,
            head_channels=None,
            resample="conv",
            downsample_padding=self.downsample_padding,
            scale_shift_norm=self.scale_shift_norm,
            norm_groups=self.norm_groups,
            norm_eps=self.norm_eps,
            dropout=self.dropout,
            initialization="pytorch",
            dtype=jnp.dtype(self.dtype),
            remat=self.remat,
            activation=self.activation,
        )

    @nn.nowrap
    def transformer(self, level: int, depths: tuple[int, ...] | None = None) -> TransformerOptions:
        """Of a level; depths: instead of transformer_depth."""
        return TransformerOptions(
            depth=(depths or self.transformer_depth)[level],
            num_heads=self.num_heads[level],
            linear_projection=self.linear_projection,
            norm_groups=self.norm_groups,
            dropout=self.dropout,
            initialization="pytorch",
            remat=self.remat,
            dtype=jnp.dtype(self.dtype),
            scan_layers=self.scan_layers,
            text_only=bool(self.only_cross_attention) and self.only_cross_attention[level],
        )

    @nn.nowrap
    def check(self, sample: jax.Array, context: jax.Array) -> None:
        """Raises ValueError, one line, if the fields cannot work together or with these inputs."""
        optional = ("time_ids_channels", "num_classes", "guidance_channels")
        checks.check_counts(self, ("num_res_blocks", "norm_groups"), optional=optional)
        checks.check_choice("mid_block", self.mid_block, MID_BLOCKS)
        checks.check_choice("class_embedding", self.class_embedding, CLASS_EMBEDDINGS)
        checks.check_choice("activation", self.activation, tuple(ACTIVATIONS))
        checks.check_positive("mid_scale", self.mid_scale)
        checks.check_choice("downsample_padding", self.downsample_padding, (0, 1))
        checks.check_dropout(self.dropout)
        checks.check_dtype(self.dtype)
        given = [name for name in ("only_cross_attention", "up_transformer_depth") if getattr(self, name, None)]
        for field in ("attention", "transformer_depth", "num_heads", *given):
            if len(getattr(self, field)) != len(self.widths):
                raise ValueError(f"{field}={getattr(self, field)}: it must have one value for each of {self.widths}")
        for width, heads in zip(self.widths, self.num_heads, strict=True):
            if width % self.norm_groups or width % heads:
                raise ValueError(
                    f"widths={self.widths}: each must be a multiple of norm_groups={self.norm_groups} and of its"
                    f" num_heads={self.num_heads}"
                )
        step = 2 ** (len(self.widths) - 1)
        for side in sample.shape[1:3]:
            if side % step:
                raise ValueError(f"sample of {side} pixels: its {len(self.widths)} levels need a multiple of {step}")
        if context.ndim != 3 or context.shape[0] != sample.shape[0]:
            raise ValueError(
                f"encoder_hidden_states {context.shape}: it must be [batch, tokens, width], batch {sample.shape[0]}"
            )


class ConditionalUNet(ConditionalTrunk):
    """Predicts noise, velocity or image from a noisy latent, its time and the features of a text.

    Fields: those of :class:`ConditionalTrunk`; out_channels; up_transformer_depth, None where the way up has the
    transformers of the way down. The inpainting network is the same one on nine channels: latent, mask and the latent
    of the masked image.

    ``model.apply(..., mutable=["attention"])`` also returns the maps of the attention to the text, float32
    [B, pixels, tokens] for every transformer block; nothing is computed for them otherwise.
    """

    out_channels: int = 4
    up_transformer_depth: tuple[int, ...] | None = None

    @nn.compact
    def __call__(
        self,
        sample: jax.Array,
        timestep: jax.Array,
        encoder_hidden_states: jax.Array,
        class_labels: jax.Array | None = None,
        added_cond_kwargs: Conditions | None = None,
        down_block_additional_residuals: Sequence[jax.Array] | None = None,
        mid_block_additional_residual: jax.Array | None = None,
        timestep_cond: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """The prediction [B, H, W, out_channels], float32.

        Args:
          sample: noisy latents [B, H, W, C], sides divisible by two for each level but the last.
          timestep: scalar or [B], integer or float, 0..999.
          encoder_hidden_states: features of the text [B, tokens, width].
          class_labels: for a network with classes only, int32 [B], or what its class_embedding takes.
          added_cond_kwargs: for SDXL, ``text_embeds`` [B, D], the pooled text, and ``time_ids`` [B, 6]: original
            size, crop and target size, each (height, width), in pixels.
          down_block_additional_residuals, mid_block_additional_residual: of a ControlNet, added to what the way up
            takes and to the middle.
          timestep_cond: [B, guidance_channels], the embedded guidance scale.
          train: applies dropout, from the PRNG stream "dropout".

        Raises:
          ValueError: fields or shapes that cannot work together; labels, conditions missing or unexpected.
        """
        self.check(sample, encoder_hidden_states)
        checks.check_counts(self, ("out_channels",))
        o, context = self.options(), encoder_hidden_states
        if self.center_input:
            sample = 2 * sample - 1
        embedding = self.embed(timestep, sample.shape[0], class_labels, added_cond_kwargs, timestep_cond)
        h, skips = self.down(o.conv(self.widths[0], "conv_in")(sample), embedding, context, train)
        if down_block_additional_residuals is not None:
            if len(down_block_additional_residuals) != len(skips):
                raise ValueError(
                    f"down_block_additional_residuals holds {len(down_block_additional_residuals)} arrays; this network"
                    f" takes {len(skips)}"
                )
            pairs = zip(skips, down_block_additional_residuals, strict=True)
            skips = [skip + residual.astype(skip.dtype) for skip, residual in pairs]
        h = self.middle(h, embedding, context, train)
        if mid_block_additional_residual is not None:
            h = h + mid_block_additional_residual.astype(h.dtype)
        for i, level in enumerate(reversed(range(len(self.widths)))):
            block = UpBlock(
                self.widths[level], self.num_res_blocks + 1, self.attention[level], level > 0, o,
                self.transformer(level, self.up_transformer_depth), name=f"up_blocks_{i}",
            )  # fmt: skip
            h = block(h, skips, embedding, train, context)
        h = o.activate(o.norm("conv_norm_out")(h))
        h = o.conv(self.out_channels, "conv_out", last=True)(h)
        return h.astype(jnp.promote_types(o.dtype, jnp.float32))


def guidance_embedding(scale: jax.Array, channels: int) -> jax.Array:
    """``timestep_cond`` of a network that is told its guidance scale: w [B] -> [B, channels], float32.

    Sines, then cosines of 1000 w at frequencies 10000^(-i / (channels / 2 - 1)) (Luo et al. 2023, arXiv:2310.04378). w
    counts from the unguided network: it is the usual scale less one.
    """
    return timestep_embedding(1000.0 * scale, channels, flip_sin_to_cos=False, freq_shift=1.0)
