"""A normalising flow as a model: its loss is the exact number of bits that images cost, its images are noise undone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.conditions.condition import Conditions
from diffusion_jax.conditions.label import Label
from diffusion_jax.data.source import LABEL
from diffusion_jax.diffusion.arrays import standard_normal
from diffusion_jax.methods import latent_walk
from diffusion_jax.methods.examples import Batch, Metrics, example_keys

# What is folded into an image's key for the latent that its walk starts from.
_OTHER_END = 1


@dataclasses.dataclass(frozen=True)
class Flow:
    """See `methods.method.Drawing`.

    Attributes:
      network: an invertible one, network(x, class_labels, reverse, train) -> (z, log |det|).
      image_shape: (height, width, channels).
      num_classes: None for an unconditional flow.
      pixel_levels: values of a pixel, evenly spaced from -1 to 1.
    """

    network: nn.Module
    image_shape: tuple[int, int, int]
    num_classes: int | None = None
    pixel_levels: int = 256

    @property
    def conditions(self) -> Conditions:
        """The class, if the network is told of it."""
        return {} if self.num_classes is None else {LABEL: Label(self.num_classes)}

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Parameters, of which those of `ActNorm` follow from the images of the batch [B, H, W, C]."""
        images, labels = batch["image"], None
        if self.num_classes is not None:
            labels = batch.get("condition", {}).get(LABEL, jnp.zeros(len(images), jnp.int32))
        parameter_key, noise_key = jax.random.split(key)
        positions = {"position": batch.get("position", jnp.arange(len(images)))}
        x = self.dequantised(images, example_keys(noise_key, positions))
        return self.network.init(parameter_key, x, labels)["params"]

    def loss(self, params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean of -log2 p(image) per dimension; "latent_variance" is 1 where latents are as normal as they should.

        batch: "image" float [B, H, W, C] in [-1, 1], the label int32 [B] of its "condition", "position" int32 [B].
        """
        del step
        keys = example_keys(key, batch)
        dropout = jax.random.fold_in(keys[0], 1)
        labels = None if self.num_classes is None else batch["condition"][LABEL]
        bits, z = self._bits(params, self.dequantised(batch["image"], keys), labels, dropout)
        weights = jnp.ones_like(bits)
        return bits.mean(), {"loss": (bits, weights), "latent_variance": (jnp.square(z).mean((1, 2, 3)), weights)}

    def bits_per_dimension(
        self, params: Any, images: jax.Array, labels: jax.Array | None, keys: jax.Array
    ) -> jax.Array:
        """-log2 p(image) per dimension [B], for one draw from keys [B] of the noise that fills a pixel's levels."""
        return self._bits(params, self.dequantised(images, keys), labels)[0]

    def dequantised(self, images: jax.Array, keys: jax.Array) -> jax.Array:
        """Images [B, H, W, C] in [-1, 1] as values that are spread over their level: 2 (level + u) / levels - 1."""
        noise = jax.vmap(lambda key: jax.random.uniform(key, (math.prod(self.image_shape),)))(keys)
        level = jnp.round((jnp.asarray(images, jnp.float32) + 1) / 2 * (self.pixel_levels - 1))
        return 2 * (level + noise.reshape(images.shape)) / self.pixel_levels - 1

    def quantised(self, x: jax.Array) -> jax.Array:
        """Images in [-1, 1], each value the level that it lies on."""
        level = jnp.clip(jnp.floor((x + 1) / 2 * self.pixel_levels), 0, self.pixel_levels - 1)
        return level / (self.pixel_levels - 1) * 2 - 1

    def draw(
        self, params: Any, keys: jax.Array, condition: Mapping[str, Any], given: Any, frame_stride: int | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """See `methods.method.Drawing`. given: {"temperature": float32}; frame_stride: the number of frames."""
        labels = condition.get(LABEL)

        def images_of(latents: jax.Array) -> jax.Array:
            x, _ = self.network.apply({"params": params}, latents, labels, reverse=True)  # pyright: ignore
            return self.quantised(x)

        def latents_of(keys: jax.Array) -> jax.Array:
            noise = jax.vmap(lambda key: standard_normal(key, self.image_shape))(keys)
            return given["temperature"] * noise

        own = latents_of(keys)
        if frame_stride is None:
            return images_of(own), None
        others = latents_of(jax.vmap(jax.random.fold_in, (0, None))(keys, _OTHER_END))
        walk = latent_walk.spherical(others, own, frame_stride).at[-1].set(own)
        frames = jax.lax.map(images_of, walk)
        return frames[-1], frames

    def frames(self, count: int) -> tuple[int, Sequence[str]]:
        count = max(count, 2)
        return count, [f"{place / (count - 1):.0%} of the way" for place in range(count)]

    def _bits(
        self, params: Any, x: jax.Array, labels: jax.Array | None, dropout: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """-log2 of the probability of the level that x lies on, a dimension [B], and z.

        A level is 2 / levels wide, so that its probability is the density times that, on average over the noise; by
        Jensen's inequality the mean of the logarithms is a bound (Theis et al. 2016, section 3.1).
        """
        how = {} if dropout is None else {"train": True, "rngs": {"dropout": dropout}}
        transformed: Any = self.network.apply({"params": params}, x, labels, **how)  # pyright: ignore
        z, log_det = transformed
        values = math.prod(self.image_shape)
        log_normal = -0.5 * (jnp.square(z).sum((1, 2, 3)) + values * math.log(2 * math.pi))
        bits = -(log_normal + log_det) / (values * math.log(2))
        return bits + math.log2(self.pixel_levels / 2), z
