"""A classifier of noisy images as a method: what guides samples towards a class (Dhariwal and Nichol 2021)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.conditions.condition import Conditions
from diffusion_jax.conditions.label import Label
from diffusion_jax.data.source import LABEL
from diffusion_jax.diffusion.objective import quantile_and_noise
from diffusion_jax.diffusion.process import Process
from diffusion_jax.methods.examples import Batch, Metrics, by_noise_level, example_keys


@dataclasses.dataclass(frozen=True)
class NoisyClassifier:
    """A network that tells the class of x_t, trained on the forward process at the times that the process draws.

    Attributes:
      network: called as network(sample, timestep, train) -> logits [B, num_classes].
      process: the forward process, that of the diffusion model which is to be guided.
      image_shape: (height, width, channels).
      num_classes: of the data.
      least_crop: training images are enlarged at random so that this share of their side is left at least, anywhere in
        the image (0.8 in the released code, which crops before it shrinks); 1 leaves them as they are.
    """

    network: nn.Module
    process: Process
    image_shape: tuple[int, int, int]
    num_classes: int
    least_crop: float = 1.0

    @property
    def conditions(self) -> Conditions:
        """The classes, which it learns to tell."""
        return {LABEL: Label(self.num_classes)}

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Parameters for images like those of `batch`."""
        image = jnp.zeros((1, *self.image_shape), batch["image"].dtype)
        return self.network.init(key, image, jnp.zeros(1, jnp.int32))["params"]

    def loss(self, params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The mean cross-entropy of a batch in nats, and what is reported of it as name -> (values [B], weights [B]).

        batch: "image" float [B, H, W, C] in [-1, 1], the "label" int32 [B] of its "condition", and "position" int32
        [B], the place of each example in the global batch, from which its time, noise and crop follow.
        """
        del step
        keys = example_keys(key, batch)
        images, labels = batch["image"], batch["condition"][LABEL]
        if self.least_crop < 1:
            crop_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 2)
            images = jax.vmap(random_crop, (0, 0, None))(crop_keys, images, self.least_crop)
        quantile, noise = jax.vmap(quantile_and_noise, (0, None, None))(keys, images.shape[1:], images.dtype)
        time = self.process.time_at(quantile)
        dropout = {"dropout": jax.random.fold_in(keys[0], 1)}
        noisy = self.process.add_noise(images, noise, time)
        logits: Any = self.network.apply({"params": params}, noisy, time, True, rngs=dropout)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1)[:, 0]
        right = (logits.argmax(-1) == labels).astype(loss.dtype)
        one = jnp.ones_like(loss)
        metrics = {"loss": (loss, one), **by_noise_level("loss", loss, one, quantile)}
        metrics |= {"accuracy": (right, one), **by_noise_level("accuracy", right, one, quantile)}
        return loss.mean(), metrics

    def log_probabilities(self, params: Any, noisy: jax.Array, time: jax.Array) -> jax.Array:
        """log p(y | x_t) of every class, float32 [B, num_classes], for x_t [B, H, W, C] at times [B] or a scalar."""
        logits: Any = self.network.apply({"params": params}, noisy, time)
        return jax.nn.log_softmax(logits)


def random_crop(key: jax.Array, image: jax.Array, least: float) -> jax.Array:
    """A random square of the image [H, W, C] at the image's size: the side is divided by a uniform from 1 to 1 / least.

    Interpolated with Keys' cubic, and clipped to [-1, 1].
    """
    zoom_key, place_key = jax.random.split(key)
    zoom = jax.random.uniform(zoom_key, minval=1.0, maxval=1 / least)
    size = jnp.asarray(image.shape[:2], jnp.float32)
    begin = jax.random.uniform(place_key, (2,)) * size * (zoom - 1)
    scale = jnp.stack([zoom, zoom])
    cropped = jax.image.scale_and_translate(image, image.shape, (0, 1), scale, -begin, "cubic", antialias=False)
    return jnp.clip(cropped, -1, 1).astype(image.dtype)
