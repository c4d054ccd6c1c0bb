"""Pictures out of nothing but noise: DDPM's and DDIM's pipelines."""

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

from diffusion_jax.diffusion import samplers
from diffusion_jax.diffusion.samplers import Sampler
from diffusion_jax.pipelines.inputs import image_keys, padded
from diffusion_jax.pipelines.latent import BATCH_AXES, Schedule


@dataclasses.dataclass(frozen=True, eq=False)
class Unconditional:
    """A pipeline without a text; make one with :func:`diffusion_jax.hub.load_pipeline`.

    Attributes:
      network: predicts for images [B, H, W, C] in [-1, 1]; params: its parameters, under "network".
      schedule: of the sampler. image_size, channels: of the images. num_steps: where a call does not say.
      mesh: devices that batches are split over; see :meth:`shard`.
    """

    network: nn.Module
    params: Any
    schedule: Schedule
    image_size: int
    channels: int
    num_steps: int = 50
    mesh: Mesh | None = None

    def __call__(
        self,
        num_images: int | None = None,
        num_steps: int | None = None,
        latents: jax.Array | np.ndarray | None = None,
        key: jax.Array | None = None,
        *,
        sampler: Sampler | None = None,
    ) -> np.ndarray:
        """Draws images, float32 [B, H, W, C] in [0, 1].

        Args:
          num_images: how many; None takes as many as there are latents or keys, or one.
          num_steps: of the sampler; None takes the pipeline's.
          latents: unit normal starts [B, H, W, C] instead of those of the key.
          key: one key, from which image i uses fold_in(key, i), or keys [B]; None is key(0).
          sampler: another sampler than the schedule's.

        Raises:
          ValueError: arguments that cannot be, in one line.
        """
        if num_images is None:
            num_images = len(latents) if latents is not None else len(key) if key is not None and key.ndim else 1
        if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < 1:
            raise ValueError(f"num_images is {num_images!r}; this pipeline takes no prompts, but a number from 1 up")
        shape = (self.image_size, self.image_size, self.channels)
        arrays: dict[str, Any] = {"keys": image_keys(key, num_images)}
        if latents is not None:
            if latents.shape[0] != num_images or latents.ndim != 4 or latents.shape[-1] != self.channels:
                raise ValueError(f"latents have shape {latents.shape}; they must be {(num_images, *shape)}")
            arrays["latents"] = jnp.asarray(latents, jnp.float32)
        if sampler is None:
            sampler = self.schedule.sampler(self.num_steps if num_steps is None else num_steps)
        if self.mesh is not None:
            devices = math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)
            arrays = padded(arrays, -(-num_images // devices) * devices)
            arrays = jax.device_put(arrays, NamedSharding(self.mesh, P(BATCH_AXES)))
        return np.asarray(self._program(shape, self.params, sampler, arrays)[:num_images])

    def with_solver(self, name: str) -> Unconditional:
        """The same pipeline with another solver; see :meth:`diffusion_jax.hub.schedule.Schedule.with_solver`."""
        return dataclasses.replace(self, schedule=self.schedule.with_solver(name))

    def shard(self, mesh: Mesh) -> Unconditional:
        """The same pipeline with its parameters on every device of the mesh and batches split over them."""
        return dataclasses.replace(self, params=jax.device_put(self.params, NamedSharding(mesh, P())), mesh=mesh)

    @functools.cached_property
    def _program(self) -> Any:
        def draw(shape: tuple[int, ...], params: Any, sampler: Sampler, arrays: Any) -> jax.Array:
            def predict(x: jax.Array, t: jax.Array) -> jax.Array:
                return self.network.apply({"params": params["network"]}, sample=x, timestep=t)  # pyright: ignore[reportReturnType]

            if "latents" in arrays:
                start = sampler.init_noise_sigma * arrays["latents"]
            else:
                start = samplers.initial_noise(sampler, arrays["keys"], shape)
            end, _ = samplers.sample(sampler, predict, start, arrays["keys"], return_trajectory=False)
            return jnp.clip(end / 2 + 0.5, 0, 1).astype(jnp.float32)

        return jax.jit(draw, static_argnums=0)
