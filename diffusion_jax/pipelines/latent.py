"""Latent diffusion draws from texts: text-to-image, image-to-image, inpainting, control; one program a shape."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax import batching
from diffusion_jax.pipelines import adapters
from diffusion_jax.pipelines.denoiser import Control
from diffusion_jax.pipelines.families import TextOptions
from diffusion_jax.pipelines.image_request import ImageRequest
from diffusion_jax.pipelines.inputs import (
    NotFiniteError,
    Schedule,
    batch_axes,
    batch_mesh,
    batch_of_images,
    prompt_list,
)
from diffusion_jax.pipelines.preparation import Prepared, prepare, size_of
from diffusion_jax.pipelines.programs import PARTS, Programs
from diffusion_jax.pipelines.text import TextEncoder


@dataclasses.dataclass(frozen=True, eq=False)
class LatentDiffusion:
    """A pipeline; make one with :func:`diffusion_jax.hub.load_pipeline`, change one with ``dataclasses.replace``.

    Attributes:
      network, autoencoder, encoders, controls: the networks. schedule: of the sampler.
      params: of all networks, by name: "network", "autoencoder", those of the encoders and controls.
      options: how texts become conditions. sample_size: (height, width) of the latents that the network was
        trained on.
      zero_negative: without a negative prompt the negative conditions are zeros.
      adapters, adapter_weights: low-rank changes of weights that are added in the program, and their weights.
      offload_text: the text encoders' parameters stay in the host's memory and are on the device only while texts are
        encoded, in a program of their own.
      mesh: devices that batches are split over; see :meth:`shard`.
    """

    network: nn.Module
    autoencoder: nn.Module
    encoders: tuple[TextEncoder, ...]
    schedule: Schedule
    params: Mapping[str, Any]
    options: TextOptions
    sample_size: tuple[int, int]
    controls: tuple[Control, ...] = ()
    zero_negative: bool = False
    adapters: tuple[adapters.Adapter, ...] = ()
    adapter_weights: tuple[float, ...] = ()
    offload_text: bool = False
    mesh: Mesh | None = None

    def __call__(
        self,
        prompts: str | Sequence[str],
        negative_prompts: str | Sequence[str] | None = None,
        num_steps: int = ImageRequest.num_steps,
        guidance_scale: float = ImageRequest.guidance_scale,
        guidance_rescale: float = ImageRequest.guidance_rescale,
        latents: jax.Array | np.ndarray | None = None,
        key: jax.Array | None = None,
        **others: Any,
    ) -> Any:
        """Draws one image for each prompt: ``draw`` of a request with these fields.

        Args:
          prompts, negative_prompts, num_steps, guidance_scale, guidance_rescale, latents, key, and others, by name: the
            fields of :class:`diffusion_jax.pipelines.image_request.ImageRequest`, where each is explained. Images,
            masks, ControlNets' images, SDXL's sizes and attention maps are among the others.

        Returns and raises: as ``draw``; also

        Raises:
          TypeError: arguments of another library; the line says what they are called here.
        """
        return self.draw(
            ImageRequest.of(
                prompts=prompts,
                negative_prompts=negative_prompts,
                num_steps=num_steps,
                guidance_scale=guidance_scale,
                guidance_rescale=guidance_rescale,
                latents=latents,
                key=key,
                **others,
            )
        )

    def draw(self, request: ImageRequest) -> Any:
        """Draws what is requested.

        Returns:
          float32 [B, H, W, 3] in [0, 1], or latents. With `attention`: (images, maps), maps[word][block] being float32
          [steps, B, h, w], the attention of each pixel to the word at each step, the mean over heads.

        Raises:
          ValueError: what this pipeline cannot do, in one line.
          NotFiniteError: the image is not finite; the line names the first part where numbers were lost.
        """
        prepared = prepare(self, request)
        drawn, maps = self._run(prepared, request.batch)
        if request.mask is not None and request.keep_unmasked and request.output == "images":
            mask = prepared.arrays["mask"]
            drawn = mask * drawn + (1 - mask) * prepared.arrays["image"]
        if not request.attention:
            return drawn
        columns = enumerate(request.attention)
        return drawn, {word: {name: value[..., i] for name, value in maps.items()} for i, word in columns}

    def invert(
        self,
        images: Any,
        prompts: str | Sequence[str],
        num_steps: int = ImageRequest.num_steps,
        clip_skip: int = 0,
    ) -> jax.Array:
        """Finds the noise [B, h, w, C] that DDIM turns into the images (Song et al. 2021, section 5.4).

        Draw with it as `latents`, the same prompts and number of steps, guidance_scale=1 and a pipeline of
        ``with_solver("ddim")``. Raises ValueError for a flow.
        """
        prompts = prompt_list(prompts, "prompts")
        sampler = self.schedule.inversion(num_steps)
        arrays = batch_of_images(images, len(prompts), "images")
        request = ImageRequest(
            prompts,
            guidance_scale=1.0,
            latents=self.programs.encode_images(self.params["autoencoder"], arrays),
            sampler=sampler,
            clip_skip=clip_skip,
            size=size_of(self, arrays, None, "images"),
            output="latents",
        )
        return self.draw(request)

    def with_solver(self, name: str) -> LatentDiffusion:
        """Gives the same pipeline with another solver; see :meth:`diffusion_jax.hub.schedule.Schedule.with_solver`."""
        return dataclasses.replace(self, schedule=self.schedule.with_solver(name))

    def shard(self, mesh: Mesh) -> LatentDiffusion:
        """Gives the same pipeline with its parameters on every device of the mesh and batches split over them."""
        kept = {encoder.name for encoder in self.encoders} if self.offload_text else set()
        mesh = batch_mesh(mesh)
        everywhere = NamedSharding(mesh, P())
        placed = {
            name: tree if name in kept else jax.device_put(tree, everywhere) for name, tree in self.params.items()
        }
        return dataclasses.replace(self, params=placed, mesh=mesh)

    @property
    def factor(self) -> int:
        """Counts the pixels of an image for each of its latent, on a side."""
        return self.autoencoder.factor  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def usual_size(self) -> tuple[int, int]:
        """Gives (height, width) of the images where a call does not say."""
        height, width = self.sample_size
        return height * self.factor, width * self.factor

    @property
    def channels(self) -> int:
        """Counts the channels of the latents."""
        return self.autoencoder.latent_channels  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def is_inpainting(self) -> bool:
        """Tells whether the network was trained to paint: it then has channels for a mask and what is outside it."""
        kernel = self.params["network"].get("conv_in", {}).get("kernel")
        return kernel is not None and kernel.shape[2] == 2 * self.channels + 1

    @functools.cached_property
    def programs(self) -> Programs:
        """Holds the compiled programs, for all parameters of these networks."""
        return Programs(self.network, self.autoencoder, self.encoders, self.options, self.controls)

    @property
    def _whole_program(self) -> Any:
        return self.programs.whole

    def _run(self, prepared: Prepared, batch: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        arrays, tokens = prepared.arrays, prepared.tokens
        if self.mesh is not None:
            devices = math.prod(self.mesh.shape[axis] for axis in batch_axes(self.mesh))
            arrays, tokens = batching.filled((arrays, tokens), batching.rounded_up(batch, devices))
            arrays, tokens = jax.device_put((arrays, tokens), NamedSharding(self.mesh, P(batch_axes(self.mesh))))
        plan, shape, sampler, settings = prepared.plan, prepared.latent_shape, prepared.sampler, prepared.settings
        if self.offload_text:
            encoders = {encoder.name: self.params[encoder.name] for encoder in self.encoders}
            params = {name: tree for name, tree in self.params.items() if name not in encoders}
            conditions = self.programs.encode(plan, encoders, tokens, settings["adapters"])
            drawn, maps, finite = self.programs.sample(plan, shape, params, conditions, sampler, settings, arrays)
        else:
            drawn, maps, finite = self.programs.whole(plan, shape, self.params, tokens, sampler, settings, arrays)
        for part, is_finite in zip(PARTS, np.asarray(finite), strict=True):
            if not is_finite:
                raise NotFiniteError(
                    f"the image is not finite: the numbers were lost in the {part}, or its parameters are not finite"
                )
        return np.asarray(drawn[:batch]), {name: np.asarray(value[:, :batch]) for name, value in maps.items()}
