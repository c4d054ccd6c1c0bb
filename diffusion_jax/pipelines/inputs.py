"""What pipelines are given: images, masks, prompts, keys and meshes, as the arrays that programs take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh

from diffusion_jax.diffusion.samplers import Sampler

BATCH_AXES = ("data", "fsdp")


class Schedule(Protocol):
    """A checkpoint's noise schedule; see :class:`diffusion_jax.hub.schedule.Schedule`."""

    @property
    def solver(self) -> str: ...

    def sampler(self, num_steps: int, first_step: int = 0, tokens: int | None = None) -> Sampler: ...

    def first_step(self, num_steps: int, strength: float) -> int: ...

    def levels(self, sampler: Sampler) -> tuple[np.ndarray, np.ndarray]: ...

    def inversion(self, num_steps: int) -> Sampler: ...

    def with_solver(self, name: str) -> Schedule: ...


def batch_of_images(images: Any, batch: int, name: str) -> np.ndarray:
    """Images in [0, 1], float [B, H, W, C], one for all or one for each; uint8 and PIL images are taken too.

    Raises:
      ValueError: another number of images, axes or range.
    """
    array = np.asarray(images)
    if array.dtype == np.uint8:
        array = array.astype(np.float32) / 255
    array = array.astype(np.float32)
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ValueError(f"{name} has shape {array.shape}; it must be [height, width, 3] or [batch, height, width, 3]")
    if len(array) not in (1, batch):
        raise ValueError(f"{name} holds {len(array)} images; it must hold 1 or {batch}, as there are prompts")
    if array.min() < -1e-3 or array.max() > 1 + 1e-3:
        raise ValueError(f"{name} has values from {array.min():g} to {array.max():g}; they must be in [0, 1]")
    return np.broadcast_to(array, (batch, *array.shape[1:]))


def batch_of_masks(mask: Any, batch: int) -> np.ndarray:
    """Masks, float 0 or 1 [B, H, W, 1], 1 where it is painted; cut at one half.

    Raises:
      ValueError: as for images.
    """
    array = np.asarray(mask)
    if array.dtype == bool:
        array = array.astype(np.float32)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] not in (1, 3)):  # [H, W] or [B, H, W]
        array = array[..., None]
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3):
        raise ValueError(f"mask has shape {np.shape(mask)}; it must be [height, width] or [batch, height, width, 1]")
    array = batch_of_images(array, batch, "mask")
    return (array.mean(axis=-1, keepdims=True) >= 0.5).astype(np.float32)


class NotFiniteError(FloatingPointError):
    """An image that is not finite; the message is one line that names the first part where numbers were lost."""


def check_finite(**values: Any) -> None:
    """Raises ValueError for an option that is not a finite number, or holds one."""
    for name, value in values.items():
        if value is not None and not np.isfinite(np.asarray(value, np.float64)).all():
            raise ValueError(f"{name} is {value}; it must be finite")


# What diffusers calls things -> what they are called here.
_FOREIGN = {
    "prompt": "prompts",
    "negative_prompt": "negative_prompts",
    "num_inference_steps": "num_steps",
    "generator": "key (a JAX PRNG key, jax.random.key(seed))",
    "seed": "key (jax.random.key(seed))",
    "num_images_per_prompt": "prompts, each as often as it is to be drawn",
    "height": "size=(height, width)",
    "width": "size=(height, width)",
    "output_type": 'output, "images" or "latents"',
    "mask_image": "mask",
    "init_image": "image",
    "control_image": "control_images",
    "controlnet_conditioning_scale": "control_scale",
    "control_guidance_start": "control_start",
    "control_guidance_end": "control_end",
    "batch_size": "num_images",
    "class_labels": "labels",
    "eta": "the eta of hub.load_sampler, given as sampler",
    "scheduler": "sampler",
}


def refuse_foreign(given: Mapping[str, Any]) -> None:
    """Raises TypeError for an argument that a pipeline has not; for diffusers' names it says what ours is."""
    for name in given:
        ours = f"here it is {_FOREIGN[name]}" if name in _FOREIGN else "there is nothing of that name"
        raise TypeError(f"a pipeline takes no {name!r}: {ours}")


def batch_mesh(mesh: Mesh) -> Mesh:
    """The mesh with axes whose shardings the compiler works out, whatever kind they were made as.

    Raises ValueError for a mesh without an axis that batches are split over.
    """
    if not set(BATCH_AXES) & set(mesh.axis_names):
        raise ValueError(
            f"the mesh has the axes {mesh.axis_names}; it needs 'data' or 'fsdp', that batches are split over"
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def batch_axes(mesh: Mesh) -> tuple[str, ...]:
    """The axes of the mesh that batches are split over."""
    return tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)


def image_keys(key: jax.Array | None, batch: int) -> jax.Array:
    """One key an image: fold_in(key, i), or the keys [B] as they are."""
    key = jax.random.key(0) if key is None else key
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))
    if key.shape != (batch,):
        raise ValueError(f"key has shape {key.shape}; it must be one key, or {batch}, one for each image")
    return key


def prompt_list(prompts: str | Sequence[str], name: str) -> list[str]:
    """The prompts as a list; raises ValueError for anything but strings."""
    values = [prompts] if isinstance(prompts, str) else list(prompts)
    if not values or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} must be a string or a list of strings, at least one")
    return values


def control_rules(values: Sequence[float | Sequence[float]], count: int) -> np.ndarray:
    """(scale, start, end) of each ControlNet, float32 [count, 3]."""
    columns = []
    for name, value in zip(("control_scale", "control_start", "control_end"), values, strict=True):
        column = [float(value)] * count if isinstance(value, int | float) else [float(one) for one in value]
        if len(column) != count:
            raise ValueError(f"{name} has {len(column)} values for {count} ControlNets; give 1 or {count}")
        columns.append(column)
    rules = np.array(columns, np.float32).reshape(3, count).T
    if count and ((rules[:, 1] >= rules[:, 2]) | (rules[:, 1] < 0) | (rules[:, 2] > 1)).any():
        raise ValueError("control_start and control_end must be 0 <= start < end <= 1")
    return rules
