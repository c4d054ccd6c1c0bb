"""A request becomes what a pipeline's programs take: a plan, a sampler, numbers and arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.samplers import Sampler
from diffusion_jax.pipelines import text
from diffusion_jax.pipelines.image_request import ImageRequest
from diffusion_jax.pipelines.inputs import batch_of_images, batch_of_masks, control_rules, image_keys
from diffusion_jax.pipelines.programs import Plan

if TYPE_CHECKING:
    from diffusion_jax.pipelines.latent import LatentDiffusion


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """These are the arguments of the programs.

    Attributes:
      plan, latent_shape: what is compiled for. sampler: of the steps that are left.
      settings: numbers that all images share. tokens: of the prompts and of the negative ones, None without.
      arrays: [B, ...], one row an image.
    """

    plan: Plan
    latent_shape: tuple[int, int, int]
    sampler: Sampler
    settings: dict[str, Any]
    tokens: tuple[Any, Any]
    arrays: dict[str, Any]


def prepare(pipe: LatentDiffusion, request: ImageRequest) -> Prepared:
    """Gives what the programs of a pipeline take for a request. Raises ValueError for what this pipeline cannot do."""
    text.check_clip_skip(pipe.encoders, request.clip_skip)
    _check(pipe, request)
    arrays, size = _images(pipe, request)
    latent_shape = (size[0] // pipe.factor, size[1] // pipe.factor, pipe.channels)
    if request.latents is not None:
        if request.latents.shape != (request.batch, *latent_shape):
            raise ValueError(
                f"latents have shape {request.latents.shape}; they must be {(request.batch, *latent_shape)}"
            )
        arrays["latents"] = jnp.asarray(request.latents, jnp.float32)
    if request.attention:
        arrays["words"] = _words(pipe, request.prompts, request.attention)
    arrays |= pipe.programs.family.told(request, size)

    # a network that is told the scale guides itself
    guided = request.guidance_scale > 1 and pipe.programs.told_channels is None
    no_negative = request.negative_prompts is None and pipe.zero_negative
    negative = None
    if guided and not no_negative:
        negative = text.tokenize(pipe.encoders, request.negative_prompts or [""] * request.batch)
    paint = _paint(pipe, request)
    sampler, steps_left = _sampler(pipe, request, latent_shape)
    level, levels = _levels(pipe, request, sampler, paint)
    plan = Plan(
        guided=guided,
        rescaled=request.guidance_rescale != 0,
        no_negative=no_negative,
        clip_skip=request.clip_skip,
        image=request.image is not None,
        paint=paint,
        sampled=steps_left > 0,
        maps=bool(request.attention),
        latents_out=request.output == "latents",
    )
    settings = {
        "scale": np.float32(request.guidance_scale),
        "rescale": np.float32(request.guidance_rescale),
        "level": np.array(level, np.float32),
        "levels": np.array(levels, np.float32),
        "control": control_rules(
            [request.control_scale, request.control_start, request.control_end], len(pipe.controls)
        ),
        "adapters": (list(pipe.adapters), np.array(pipe.adapter_weights, np.float32)),
    }
    tokens = (text.tokenize(pipe.encoders, request.prompts), negative)
    return Prepared(plan, latent_shape, sampler, settings, tokens, arrays)


def image_size(pipe: LatentDiffusion, size: tuple[int, int] | None, given: Any = None) -> tuple[int, int]:
    """Gives (height, width) of the images: as asked, or as the given latents have it, or the usual one.

    Raises ValueError for sides that the networks cannot have.
    """
    if size is None and given is not None and np.ndim(given) == 4:
        return given.shape[1] * pipe.factor, given.shape[2] * pipe.factor
    height, width = size or pipe.usual_size
    widths = getattr(pipe.network, "widths", None)  # of a U-Net, which halves the sides before all but the first
    step = pipe.factor * (getattr(pipe.network, "patch_size", 1) if widths is None else 2 ** (len(widths) - 1))
    if height % step or width % step or height < step or width < step:
        raise ValueError(f"size is {height}x{width}; both sides must be multiples of {step}")
    return height, width


def size_of(pipe: LatentDiffusion, images: np.ndarray, size: tuple[int, int] | None, name: str) -> tuple[int, int]:
    """Gives (height, width) of images [B, H, W, C]; raises ValueError where it is not `size`, or cannot be drawn."""
    height, width = images.shape[1:3]
    if size is not None and (height, width) != tuple(size):
        raise ValueError(f"{name} is {height}x{width}; it must be {size[0]}x{size[1]}, the size of the result")
    return image_size(pipe, (height, width))


def _check(pipe: LatentDiffusion, request: ImageRequest) -> None:
    if request.mask is None and pipe.is_inpainting:
        raise ValueError("this network paints into images: give image and mask")
    images = len(request.control_images)
    if images != len(pipe.controls):
        raise ValueError(f"there are {images} control_images for {len(pipe.controls)} ControlNets; give one for each")
    if request.attention and not pipe.programs.family.has_maps:
        raise ValueError("attention maps are those of U-Nets; this network's attention joins image and text")


def _images(pipe: LatentDiffusion, request: ImageRequest) -> tuple[dict[str, Any], tuple[int, int]]:
    """(keys and pictures by name, (height, width) of what is drawn)"""
    arrays: dict[str, Any] = {"keys": image_keys(request.key, request.batch)}
    size = request.size
    if request.image is not None:
        arrays["image"] = batch_of_images(request.image, request.batch, "image")
        size = size_of(pipe, arrays["image"], size, "image")
    if request.mask is not None:
        arrays["mask"] = batch_of_masks(request.mask, request.batch)
        size_of(pipe, arrays["mask"], size, "mask")
    size = image_size(pipe, size, request.latents)
    arrays["control"] = [batch_of_images(one, request.batch, "control_images") for one in request.control_images]
    for one in arrays["control"]:
        size_of(pipe, one, size, "control_images")
    return arrays, size


def _paint(pipe: LatentDiffusion, request: ImageRequest) -> str | None:
    """How what is outside the mask is kept, see :class:`diffusion_jax.pipelines.programs.Plan`."""
    if request.mask is None:
        return None
    return "channels" if pipe.is_inpainting else "hold" if request.sampler is None else "replace"


def _sampler(pipe: LatentDiffusion, request: ImageRequest, shape: tuple[int, int, int]) -> tuple[Sampler, int]:
    """(the sampler, how many of its steps are taken)"""
    steps = request.num_steps
    if request.sampler is not None:
        return request.sampler, steps
    first = pipe.schedule.first_step(steps, request.share_of_steps) if request.image is not None else 0
    tokens = shape[0] * shape[1] // getattr(pipe.network, "patch_size", 1) ** 2
    return pipe.schedule.sampler(steps, min(first, steps - 1), tokens), steps - first


def _levels(
    pipe: LatentDiffusion, request: ImageRequest, sampler: Sampler, paint: str | None
) -> tuple[tuple[float, ...], np.ndarray]:
    """((alpha, sigma) of the start, those of the states before all rows [rows, 2] where they are needed)"""
    from_noise = (0.0, sampler.init_noise_sigma)
    if request.image is None or not (paint in (None, "hold") or request.share_of_steps < 1):
        return from_noise, np.zeros((1, 2))
    levels = np.stack(pipe.schedule.levels(sampler), axis=-1)
    from_image = paint is None or request.share_of_steps < 1
    return tuple(levels[0]) if from_image else from_noise, levels


def _words(pipe: LatentDiffusion, prompts: Sequence[str], words: Sequence[str]) -> np.ndarray:
    """Which tokens make up each word, float32 [B, tokens, words]."""
    tokenizer = pipe.encoders[0].tokenizer
    length = tokenizer(prompts).ids.shape[1]
    marks = np.zeros((len(prompts), length, len(words)), np.float32)
    for row, prompt in enumerate(prompts):
        for column, places in enumerate(tokenizer.places(prompt, words).values()):
            marks[row, [place for place in places if place < length], column] = 1
    return marks
