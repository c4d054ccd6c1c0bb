"""Pictures out of nothing but noise, or of a class: DDPM's and DDIM's pipelines, and runs of this project."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax import batching
from diffusion_jax.diffusion import guidance, samplers
from diffusion_jax.diffusion.samplers import Sampler
from diffusion_jax.pipelines.inputs import (
    NotFiniteError,
    Schedule,
    batch_axes,
    batch_mesh,
    batch_of_images,
    batch_of_masks,
    check_finite,
    image_keys,
    refuse_foreign,
)
from diffusion_jax.pipelines.known import replace_known


@dataclasses.dataclass(frozen=True, eq=False)
class Unconditional:
    """A pipeline without a text; make one with :func:`diffusion_jax.hub.load_pipeline`.

    Attributes:
      network: predicts for images [B, H, W, C] in [-1, 1]; params: its parameters, under "network".
      schedule: of the sampler. image_size: (height, width) of the images, which have so many channels.
      num_steps: where a call does not say.
      num_classes: that images can be asked to be of; None for a network that is told none.
      null_class: the label that means none of them, for classifier-free guidance; None where none was trained.
      mesh: devices that batches are split over; see :meth:`shard`.
    """

    network: nn.Module
    params: Any
    schedule: Schedule
    image_size: tuple[int, int]
    channels: int
    num_steps: int = 50
    num_classes: int | None = None
    null_class: int | None = None
    mesh: Mesh | None = None

    def __call__(
        self,
        num_images: int | None = None,
        num_steps: int | None = None,
        latents: jax.Array | np.ndarray | None = None,
        key: jax.Array | None = None,
        *,
        image: Any = None,
        mask: Any = None,
        labels: Any = None,
        guidance_scale: float = 1.0,
        sampler: Sampler | None = None,
        **others: Any,
    ) -> np.ndarray:
        """Draws images, float32 [B, H, W, C] in [0, 1].

        Args:
          num_images: how many; None takes as many as there are latents, labels or keys, or one.
          num_steps: of the sampler; None takes the pipeline's.
          latents: unit normal starts [B, H, W, C] instead of those of the key.
          key: one key, from which image i uses fold_in(key, i), or keys [B]; None is key(0).
          labels: the class of each image, integers [B], or one for all; None takes each class in turn.
          guidance_scale: of classifier-free guidance (Ho and Salimans 2022, eq. 6) away from the null class; 1 is none.
          image, mask: [H, W, C] or a batch of them in [0, 1], and where to paint it: 1. The rest stays as it is.
          sampler: another sampler than the schedule's, for example RePaint's with a mask.

        Raises:
          ValueError: arguments that cannot be, in one line.
          TypeError: arguments of another library; the line says what they are called here.
          NotFiniteError: the network's output is not finite.
        """
        refuse_foreign(others)
        if num_images is None:
            sizes = [len(given) for given in (latents, labels, key) if given is not None and np.ndim(given)]
            num_images = sizes[0] if sizes else 1
        if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1:
            raise ValueError(f"num_images is {num_images!r}; this pipeline takes no prompts, but a number from 1 up")
        shape = (*self.image_size, self.channels)
        arrays: dict[str, Any] = {"keys": image_keys(key, num_images)}
        check_finite(guidance_scale=guidance_scale)
        if guidance_scale != 1 and self.null_class is None:
            kind = "it was trained without classes" if self.num_classes is None else "it never saw images without one"
            raise ValueError(f"guidance_scale is {guidance_scale:g}; this network cannot be guided: {kind}")
        if (classes := self._labels(labels, num_images)) is not None:
            arrays["labels"] = classes
            arrays["scale"] = np.full(num_images, guidance_scale, np.float32)
        if latents is not None:
            if latents.shape[0] != num_images or latents.ndim != 4 or latents.shape[-1] != self.channels:
                raise ValueError(f"latents have shape {latents.shape}; they must be {(num_images, *shape)}")
            arrays["latents"] = jnp.asarray(latents, jnp.float32)
        if (image is None) != (mask is None):
            raise ValueError("image and mask belong together: give both or neither")
        if image is not None:
            arrays["image"] = batch_of_images(image, num_images, "image")
            arrays["mask"] = batch_of_masks(mask, num_images)
            if not arrays["image"].shape[1:3] == arrays["mask"].shape[1:3] == shape[:2]:
                raise ValueError(f"image and mask must be {shape[0]}x{shape[1]}, as the network's images")
        if sampler is None:
            sampler = self.schedule.sampler(self.num_steps if num_steps is None else num_steps)
        if self.mesh is not None:
            devices = math.prod(self.mesh.shape[axis] for axis in batch_axes(self.mesh))
            arrays = batching.filled(arrays, batching.rounded_up(num_images, devices))
            arrays = jax.device_put(arrays, NamedSharding(self.mesh, P(batch_axes(self.mesh))))
        drawn = np.asarray(self._program(shape, guidance_scale != 1, self.params, sampler, arrays)[:num_images])
        if not np.isfinite(drawn).all():
            raise NotFiniteError("the image is not finite: the network's output was not, or a parameter of it is not")
        return drawn

    def _labels(self, labels: Any, num_images: int) -> np.ndarray | None:
        """Labels int32 [B]; None for a network without classes."""
        if self.num_classes is None:
            if labels is not None:
                raise ValueError("labels are given, but this network was trained without classes")
            return None
        given = np.arange(num_images) % self.num_classes if labels is None else np.asarray(labels)
        if given.shape not in ((), (num_images,)) or not np.issubdtype(given.dtype, np.integer):
            raise ValueError(
                f"labels have shape {given.shape} and dtype {given.dtype}; they must be integers, one or {num_images}"
            )
        wrong = given[(given < 0) | (given >= self.num_classes)]
        if wrong.size:
            raise ValueError(f"label {wrong.flat[0]} does not exist; it can be 0 to {self.num_classes - 1}")
        return np.broadcast_to(given, num_images).astype(np.int32)

    def with_solver(self, name: str) -> Unconditional:
        """The same pipeline with another solver; see :meth:`diffusion_jax.hub.schedule.Schedule.with_solver`."""
        return dataclasses.replace(self, schedule=self.schedule.with_solver(name))

    def shard(self, mesh: Mesh) -> Unconditional:
        """The same pipeline with its parameters on every device of the mesh and batches split over them."""
        mesh = batch_mesh(mesh)
        return dataclasses.replace(self, params=jax.device_put(self.params, NamedSharding(mesh, P())), mesh=mesh)

    @functools.cached_property
    def _program(self) -> Any:
        def draw(shape: tuple[int, ...], guided: bool, params: Any, sampler: Sampler, arrays: Any) -> jax.Array:
            def of_class(x: jax.Array, t: jax.Array, labels: jax.Array | None) -> jax.Array:
                told: dict[str, Any] = {} if labels is None else {"class_labels": labels}
                return self.network.apply({"params": params["network"]}, sample=x, timestep=t, **told)  # pyright: ignore[reportReturnType]

            labels = arrays.get("labels")
            predict = guidance.conditional(of_class, labels)
            if guided and self.null_class is not None:
                null = jnp.full_like(labels, self.null_class)
                predict = guidance.classifier_free(of_class, labels, null, arrays["scale"])

            if "latents" in arrays:
                start = sampler.init_noise_sigma * arrays["latents"]
            else:
                start = samplers.initial_noise(sampler, arrays["keys"], shape)
            estimate: Any = predict
            if "mask" in arrays:
                estimate = replace_known(sampler, predict, 2 * arrays["image"] - 1, arrays["mask"])
            end, _ = samplers.sample(sampler, estimate, start, arrays["keys"], return_trajectory=False)
            if "mask" in arrays:
                end = arrays["mask"] * end + (1 - arrays["mask"]) * (2 * arrays["image"] - 1)
            return jnp.clip(end / 2 + 0.5, 0, 1).astype(jnp.float32)

        return jax.jit(draw, static_argnums=(0, 1))
