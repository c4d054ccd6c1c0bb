"""Latent diffusion from text: text-to-image, image-to-image, inpainting, control; one compiled program a shape."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.diffusion import guidance, samplers
from diffusion_jax.diffusion.samplers import Sampler
from diffusion_jax.models.conditional_unet import guidance_embedding
from diffusion_jax.pipelines import adapters, latents, text
from diffusion_jax.pipelines.attention_maps import along
from diffusion_jax.pipelines.denoiser import Control, Denoiser
from diffusion_jax.pipelines.inputs import (
    NotFiniteError,
    Plan,
    batch_axes,
    batch_mesh,
    batch_of_images,
    batch_of_masks,
    check_finite,
    control_rules,
    image_keys,
    padded,
    prompt_list,
    refuse_foreign,
)
from diffusion_jax.pipelines.known import hold_known, latent_mask, replace_known
from diffusion_jax.pipelines.text import TextEncoder, TextOptions

# Where numbers can be lost, in the order of the work.
_PARTS = ("text encoder", "autoencoder's encoder", "network", "autoencoder's decoder")
Changes = tuple[Sequence[adapters.Adapter], jax.Array]  # low-rank changes and their weights


class Schedule(Protocol):
    """See :class:`diffusion_jax.hub.schedule.Schedule`."""

    @property
    def solver(self) -> str: ...

    def sampler(self, num_steps: int, first_step: int = 0, tokens: int | None = None) -> Sampler: ...

    def first_step(self, num_steps: int, strength: float) -> int: ...

    def levels(self, sampler: Sampler) -> tuple[np.ndarray, np.ndarray]: ...

    def inversion(self, num_steps: int) -> Sampler: ...

    def with_solver(self, name: str) -> Schedule: ...


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
        num_steps: int = 50,
        guidance_scale: float = 7.5,
        guidance_rescale: float = 0.0,
        latents: jax.Array | np.ndarray | None = None,
        key: jax.Array | None = None,
        *,
        size: tuple[int, int] | None = None,
        image: Any = None,
        strength: float | None = None,
        mask: Any = None,
        keep_unmasked: bool = True,
        control_images: Sequence[Any] = (),
        control_scale: float | Sequence[float] = 1.0,
        control_start: float | Sequence[float] = 0.0,
        control_end: float | Sequence[float] = 1.0,
        clip_skip: int = 0,
        original_size: tuple[int, int] | None = None,
        crop: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        sampler: Sampler | None = None,
        attention: Sequence[str] = (),
        output: str = "images",
        **others: Any,
    ) -> Any:
        """Draws one image for each prompt.

        Args:
          prompts: texts, with weights as in :mod:`diffusion_jax.pipelines.emphasis`.
          negative_prompts: what to keep away from, one for all or one for each; used with guidance only.
          num_steps: of the sampler.
          guidance_scale: of classifier-free guidance (Ho and Salimans 2022, eq. 6); 1 and less is none, as there.
            Latent consistency models are told it and are not guided besides.
          guidance_rescale: phi of Lin et al. 2024, eq. 16.
          latents: unit normal starts [B, h, w, C] instead of those of the key.
          key: one key, from which image i uses fold_in(key, i), or keys [B]; None is key(0).
          size: (height, width) of the images; None takes the checkpoint's, or the image's.
          image: [H, W, 3] or [B, H, W, 3] in [0, 1] (or uint8) to start from; strength: the share of the steps that is
            run on it, 0 none, 1 all; None is 0.8, and 1 with a mask.
          mask: [H, W] or [B, H, W, 1], 1 where to paint. A network with channels for it gets mask and image; any other
            one is held to the image outside, see :mod:`diffusion_jax.pipelines.known` (strength applies to both).
            keep_unmasked: the image's own pixels outside.
          control_images: one image (or batch) in [0, 1] for each ControlNet; control_scale, control_start, control_end:
            the factor on its residuals and the share of the steps where it begins and ends, one value or one for each.
          clip_skip: how many of CLIP's last layers are left out.
          original_size, crop, target_size: SDXL's micro-conditioning (height, width), (top, left); default: the size.
          sampler: another sampler than the schedule's (num_steps is not used then).
          attention: words of the prompts whose attention maps are wanted.
          output: "images", or "latents" for what the autoencoder would decode.

        Returns:
          float32 [B, H, W, 3] in [0, 1]. With `attention`: (images, maps), maps[word][block] being float32
          [steps, B, h, w], the attention of each pixel to the word at each step, the mean over heads.

        Raises:
          ValueError: arguments that cannot be, in one line.
          TypeError: arguments of another library; the line says what they are called here.
          NotFiniteError: the image is not finite; the line names the first part where numbers were lost.
        """
        refuse_foreign(others)
        check_finite(
            guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale,
            strength=strength,
            control_scale=control_scale,
            control_start=control_start,
            control_end=control_end,
            latents=None if latents is None else float(jnp.sum(jnp.asarray(latents, jnp.float32))),
        )
        prompts = prompt_list(prompts, "prompts")
        batch = len(prompts)
        negatives = [""] * batch if negative_prompts is None else prompt_list(negative_prompts, "negative_prompts")
        negatives = negatives * batch if len(negatives) == 1 else negatives
        if len(negatives) != batch:
            raise ValueError(f"there are {len(negatives)} negative_prompts for {batch} prompts; give 1 or {batch}")
        text.check_clip_skip(self.encoders, clip_skip)
        strength = (0.8 if mask is None else 1.0) if strength is None else strength
        paint = None if mask is None else "channels" if self._inpainting else "hold" if sampler is None else "replace"
        self._check(image, mask, strength, attention, output, len(control_images))

        arrays: dict[str, Any] = {"keys": image_keys(key, batch)}
        if image is not None:
            arrays["image"] = batch_of_images(image, batch, "image")
            size = self._size_of(arrays["image"], size, "image")
        if mask is not None:
            arrays["mask"] = batch_of_masks(mask, batch)
            self._size_of(arrays["mask"], size, "mask")
        height, width = self._image_size(size, latents)
        arrays["control"] = [batch_of_images(one, batch, "control_images") for one in control_images]
        for one in arrays["control"]:
            self._size_of(one, (height, width), "control_images")
        latent_shape = (height // self.factor, width // self.factor, self.channels)
        if latents is not None:
            if latents.shape != (batch, *latent_shape):
                raise ValueError(f"latents have shape {latents.shape}; they must be {(batch, *latent_shape)}")
            arrays["latents"] = jnp.asarray(latents, jnp.float32)
        arrays["tokens"] = text.tokenize(self.encoders, prompts)
        # a network that is told the scale guides itself
        guided = guidance_scale > 1 and self._told_channels is None
        no_negative = negative_prompts is None and self.zero_negative
        if guided and not no_negative:
            arrays["negative_tokens"] = text.tokenize(self.encoders, negatives)
        if self.options.family == "sdxl":
            original, target = original_size or (height, width), target_size or (height, width)
            ids = np.array([*original, *crop, *target], np.float32)
            arrays["time_ids"] = np.broadcast_to(ids, (batch, 6))
        if attention:
            arrays["words"] = self._words(prompts, attention)

        steps_left = num_steps
        if sampler is None:
            if num_steps < 1:
                raise ValueError(f"num_steps is {num_steps}; it must be 1 or more")
            first_step = self.schedule.first_step(num_steps, strength) if image is not None else 0
            steps_left = num_steps - first_step
            tokens = latent_shape[0] * latent_shape[1] // getattr(self.network, "patch_size", 1) ** 2
            sampler = self.schedule.sampler(num_steps, min(first_step, num_steps - 1), tokens)
        level, levels = (0.0, sampler.init_noise_sigma), np.zeros((1, 2))
        if image is not None and (paint in (None, "hold") or strength < 1):
            levels = np.stack(self.schedule.levels(sampler), axis=-1)
            if paint is None or strength < 1:
                level = tuple(levels[0])
        plan = Plan(
            guided=guided,
            rescaled=guidance_rescale != 0,
            no_negative=no_negative,
            clip_skip=clip_skip,
            image=image is not None,
            paint=paint,
            sampled=steps_left > 0,
            maps=bool(attention),
            latents_out=output == "latents",
        )
        rules = [control_scale, control_start, control_end]
        settings = {
            "scale": np.float32(guidance_scale),
            "rescale": np.float32(guidance_rescale),
            "level": np.array(level, np.float32),
            "levels": np.array(levels, np.float32),
            "control": control_rules(rules, len(self.controls)),
            "adapters": (list(self.adapters), np.array(self.adapter_weights, np.float32)),
        }
        drawn, maps = self._run(plan, latent_shape, sampler, settings, arrays, batch)
        if mask is not None and keep_unmasked and output == "images":
            drawn = arrays["mask"] * drawn + (1 - arrays["mask"]) * arrays["image"]
        if not attention:
            return drawn
        return drawn, {word: {name: value[..., i] for name, value in maps.items()} for i, word in enumerate(attention)}

    def invert(
        self,
        images: Any,
        prompts: str | Sequence[str],
        num_steps: int = 50,
        clip_skip: int = 0,
    ) -> jax.Array:
        """The noise [B, h, w, C] that DDIM turns into the images (Song et al. 2021, section 5.4).

        Draw with it as `latents`, the same prompts and number of steps, guidance_scale=1 and a pipeline of
        ``with_solver("ddim")``. Raises ValueError for a flow.
        """
        prompts = prompt_list(prompts, "prompts")
        sampler = self.schedule.inversion(num_steps)
        arrays = batch_of_images(images, len(prompts), "images")
        self._size_of(arrays, None, "images")
        start = self._encode_images(self.params, arrays)
        return self(
            prompts,
            guidance_scale=1.0,
            latents=start,
            sampler=sampler,
            clip_skip=clip_skip,
            size=arrays.shape[1:3],  # pyright: ignore[reportArgumentType]
            output="latents",
        )

    def with_solver(self, name: str) -> LatentDiffusion:
        """The same pipeline with another solver; see :meth:`diffusion_jax.hub.schedule.Schedule.with_solver`."""
        return dataclasses.replace(self, schedule=self.schedule.with_solver(name))

    def shard(self, mesh: Mesh) -> LatentDiffusion:
        """The same pipeline with its parameters on every device of the mesh and batches split over them."""
        kept = {encoder.name for encoder in self.encoders} if self.offload_text else set()
        mesh = batch_mesh(mesh)
        everywhere = NamedSharding(mesh, P())
        placed = {
            name: tree if name in kept else jax.device_put(tree, everywhere) for name, tree in self.params.items()
        }
        return dataclasses.replace(self, params=placed, mesh=mesh)

    @property
    def factor(self) -> int:
        """Pixels of an image for each of its latent, on a side."""
        return self.autoencoder.factor  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def usual_size(self) -> tuple[int, int]:
        """(height, width) of the images where a call does not say."""
        height, width = self.sample_size
        return height * self.factor, width * self.factor

    @property
    def channels(self) -> int:
        """Channels of the latents."""
        return self.autoencoder.latent_channels  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def _inpainting(self) -> bool:
        kernel = self.params["network"].get("conv_in", {}).get("kernel")
        return kernel is not None and kernel.shape[2] == 2 * self.channels + 1

    # --- The programs. ------------------------------------------------------------------------------------------

    def _run(
        self, plan: Plan, shape: tuple[int, ...], sampler: Sampler, settings: Any, arrays: dict[str, Any], batch: int
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        if self.mesh is not None:
            devices = math.prod(self.mesh.shape[axis] for axis in batch_axes(self.mesh))
            arrays = padded(arrays, -(-batch // devices) * devices)
            arrays = jax.device_put(arrays, NamedSharding(self.mesh, P(batch_axes(self.mesh))))
        tokens = (arrays.pop("tokens"), arrays.pop("negative_tokens", None))
        if self.offload_text:
            encoders = {encoder.name: self.params[encoder.name] for encoder in self.encoders}
            params = {name: tree for name, tree in self.params.items() if name not in encoders}
            conditions = self._encode_program(plan, encoders, tokens, settings["adapters"])
            drawn, maps, finite = self._sample_program(plan, shape, params, conditions, sampler, settings, arrays)
        else:
            drawn, maps, finite = self._whole_program(plan, shape, self.params, tokens, sampler, settings, arrays)
        for part, is_finite in zip(_PARTS, np.asarray(finite), strict=True):
            if not is_finite:
                raise NotFiniteError(
                    f"the image is not finite: the numbers were lost in the {part}, or its parameters are not finite"
                )
        return np.asarray(drawn[:batch]), {name: np.asarray(value[:, :batch]) for name, value in maps.items()}

    @functools.cached_property
    def _encode_program(self) -> Any:
        return jax.jit(self._encode, static_argnums=0)

    @functools.cached_property
    def _sample_program(self) -> Any:
        return jax.jit(self._sample, static_argnums=(0, 1))

    @functools.cached_property
    def _whole_program(self) -> Any:
        def whole(
            plan: Plan, shape: tuple[int, ...], params: Any, tokens: Any, sampler: Sampler, settings: Any, arrays: Any
        ) -> Any:
            conditions = self._encode(plan, params, tokens, settings["adapters"])
            return self._sample(plan, shape, params, conditions, sampler, settings, arrays)

        return jax.jit(whole, static_argnums=(0, 1))

    @functools.cached_property
    def _image_program(self) -> Any:
        return jax.jit(lambda params, images: latents.encode(self.autoencoder, params, 2 * images - 1))

    def _encode_images(self, params: Mapping[str, Any], images: np.ndarray) -> jax.Array:
        return self._image_program(params["autoencoder"], images)

    def _encode(self, plan: Plan, params: Any, tokens: Any, changes: Changes) -> tuple[Any, Any]:
        """(conditions, negative conditions or None) of the tokens."""
        params = _changed(params, changes)
        positive = text.encode(self.encoders, self.options, params, tokens[0], plan.clip_skip)
        if not plan.guided:
            return positive, None
        if plan.no_negative:
            return positive, jax.tree.map(jnp.zeros_like, positive)
        return positive, text.encode(self.encoders, self.options, params, tokens[1], plan.clip_skip)

    def _sample(
        self, plan: Plan, shape: tuple[int, ...], params: Any, conditions: Any, sampler: Sampler, settings: Any,
        arrays: Any,
    ) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:  # fmt: skip
        """(images or latents, attention maps, whether each of _PARTS gave finite numbers)"""
        params = _changed(params, settings["adapters"])
        encode = functools.partial(latents.encode, self.autoencoder, params["autoencoder"])
        known = encode(2 * arrays["image"] - 1) if plan.image else None
        extra = self._shared_conditions(plan, arrays, encode)
        if self._told_channels is not None:
            told = jnp.broadcast_to(settings["scale"] - 1, conditions[0]["encoder_hidden_states"].shape[:1])
            extra["timestep_cond"] = guidance_embedding(told, self._told_channels)
        positive = {**conditions[0], **extra}
        negative = None if conditions[1] is None else {**conditions[1], **extra}
        if negative is not None and any(control.of_the_prompt for control in self.controls):
            ones = jnp.ones(positive["encoder_hidden_states"].shape[0])
            positive["prompted"], negative["prompted"] = ones, 0 * ones
        if "latents" in arrays:
            noise = arrays["latents"]
        else:
            unit = dataclasses.replace(sampler, init_noise_sigma=1.0)
            noise = samplers.initial_noise(unit, arrays["keys"], shape)
        alpha, sigma = settings["level"]
        start = sigma * noise if known is None else alpha * known + sigma * noise

        denoiser = Denoiser(self.network, self.options.family, self.controls)
        call = functools.partial(denoiser.predict, params, sampler, settings["control"])
        if negative is None:
            predict = guidance.conditional(call, positive)
        else:
            rescale = settings["rescale"] if plan.rescaled else 0.0
            predict = guidance.classifier_free(call, positive, negative, settings["scale"], rescale=rescale)
        mask, held = latent_mask(arrays["mask"], self.factor) if plan.paint in ("hold", "replace") else None, None
        if mask is not None and known is not None:
            if plan.paint == "hold":
                held = hold_known(known, noise, mask, settings["levels"])
            else:
                predict = replace_known(sampler, predict, known, mask)

        maps: dict[str, jax.Array] = {}
        end = start if known is None else known
        if plan.sampled:
            end, states = samplers.sample(
                sampler, predict, start, arrays["keys"], return_trajectory=plan.maps, after=held
            )
            if plan.maps and states is not None:
                looks = functools.partial(denoiser.maps, params, sampler, settings["control"])
                maps = along(looks, sampler, states, positive, arrays["words"], shape)
        if mask is not None and known is not None:  # without the noise that some schedules leave
            end = mask * end + (1 - mask) * known
        before = conditions if known is None else (conditions, known)
        if plan.latents_out:
            return end, maps, jnp.stack([_finite(conditions), _finite(before), _finite(end), _finite(end)])
        decoded = latents.decode(self.autoencoder, params["autoencoder"], end)
        finite = jnp.stack([_finite(conditions), _finite(before), _finite(end), _finite(decoded)])
        return jnp.clip(decoded / 2 + 0.5, 0, 1).astype(jnp.float32), maps, finite

    def _shared_conditions(self, plan: Plan, arrays: Any, encode: Any) -> dict[str, Any]:
        """What the network is told with either prompt."""
        extra: dict[str, Any] = {"control": arrays["control"]} if self.controls else {}
        if "time_ids" in arrays:
            extra["time_ids"] = arrays["time_ids"]
        if plan.paint == "channels":
            mask = arrays["mask"]
            hidden = encode((2 * arrays["image"] - 1) * (1 - mask))
            extra["extra"] = jnp.concatenate([latent_mask(mask, self.factor), hidden], axis=-1)
        return extra

    @property
    def _told_channels(self) -> int | None:
        """Width of the embedded guidance scale of networks that take it, those of latent consistency models."""
        return getattr(self.network, "guidance_channels", None)

    # --- What is asked for. -------------------------------------------------------------------------------------

    def _check(
        self, image: Any, mask: Any, strength: float, attention: Sequence[str], output: str, images: int
    ) -> None:
        if mask is not None and image is None:
            raise ValueError("a mask needs the image that it belongs to")
        if mask is None and self._inpainting:
            raise ValueError("this network paints into images: give image and mask")
        if not 0 <= strength <= 1:
            raise ValueError(f"strength is {strength}; it can be 0 (the image as it is) to 1")
        if images != len(self.controls):
            raise ValueError(
                f"there are {images} control_images for {len(self.controls)} ControlNets; give one for each"
            )
        if attention and self.options.family == "sd3":
            raise ValueError("attention maps are those of U-Nets; this network's attention joins image and text")
        if output not in ("images", "latents"):
            raise ValueError(f"output is {output!r}; it can be 'images' or 'latents'")

    def _image_size(self, size: tuple[int, int] | None, given: Any) -> tuple[int, int]:
        if size is None and given is not None and np.ndim(given) == 4:
            return given.shape[1] * self.factor, given.shape[2] * self.factor
        height, width = size or self.usual_size
        step = self.factor * self._latent_step
        if height % step or width % step or height < step or width < step:
            raise ValueError(f"size is {height}x{width}; both sides must be multiples of {step}")
        return height, width

    @property
    def _latent_step(self) -> int:
        """What the sides of latents must be multiples of."""
        widths = getattr(self.network, "widths", None)
        return getattr(self.network, "patch_size", 1) if widths is None else 2 ** (len(widths) - 1)

    def _size_of(self, images: np.ndarray, size: tuple[int, int] | None, name: str) -> tuple[int, int]:
        height, width = images.shape[1:3]
        if size is not None and (height, width) != tuple(size):
            raise ValueError(f"{name} is {height}x{width}; it must be {size[0]}x{size[1]}, the size of the result")
        return self._image_size((height, width), None)

    def _words(self, prompts: Sequence[str], words: Sequence[str]) -> np.ndarray:
        """Which tokens make up each word, float32 [B, tokens, words]."""
        tokenizer = self.encoders[0].tokenizer
        length = tokenizer(prompts).ids.shape[1]
        marks = np.zeros((len(prompts), length, len(words)), np.float32)
        for row, prompt in enumerate(prompts):
            for column, places in enumerate(tokenizer.places(prompt, words).values()):
                marks[row, [place for place in places if place < length], column] = 1
        return marks


def _finite(tree: Any) -> jax.Array:
    """Whether all numbers of a tree are finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _changed(params: Mapping[str, Any], changes: Changes) -> dict[str, Any]:
    """The parameters of the networks that a program has, with the changes that concern them."""
    present = [{name: kernels for name, kernels in one.items() if name in params} for one in changes[0]]
    return adapters.apply(params, present, changes[1])
