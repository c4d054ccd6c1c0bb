"""What can be asked of a published checkpoint, and what is refused before anything is loaded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from diffusion_jax import hub
from diffusion_jax.diffusion.arrays import check_seed
from diffusion_jax.hub.files import check_writable
from diffusion_jax.options import options
from diffusion_jax.pipelines.image_request import STRENGTH, STRENGTH_WITH_MASK, ImageRequest
from diffusion_jax.pipelines.inputs import check_finite

# What a call of a pipeline can be told, with its defaults: what the command's options mean is written there.
_OF_A_CALL = options(ImageRequest)
STEPS, GUIDANCE = ImageRequest.num_steps, ImageRequest.guidance_scale


def _option(help: str, default: Any = None) -> Any:
    return dataclasses.field(default=default, metadata={"help": help})


def _of_a_call(name: str, more: str = "", default: Any = None) -> Any:
    """An option that becomes the field `name` of a pipeline's request."""
    return _option("; ".join(filter(None, (_OF_A_CALL[name].text, more))), default)


@dataclasses.dataclass(frozen=True)
class Request:
    """What is asked for; each field is a flag of `main --mode sample --from`, repeatable where it is a tuple."""

    source: str = _option(
        "the checkpoint: a folder with model_index.json, one file, a run, or a repository, owner/name",
        "",
    )
    prompt: tuple[str, ...] = _of_a_call("prompts", "several are drawn one after the other", ())
    negative_prompt: tuple[str, ...] = _of_a_call("negative_prompts", default=())
    num: int = _option("images of each prompt", 1)
    seed: int = _option("image i is a function of seed and i", 0)
    label: int | None = _option("the class of each image; each in turn if not given")
    steps: int | None = _of_a_call("num_steps", f"{STEPS} if not given, the checkpoint's own for DDPM")
    guidance: float | None = _of_a_call("guidance_scale", f"if not given {GUIDANCE:g}, and 1 for classes")
    guidance_rescale: float | None = _of_a_call("guidance_rescale", "0 if not given")
    sampler: str | None = _option("another solver than the checkpoint's, for example dpmpp, euler, unipc")
    size: str | None = _of_a_call("size", "HEIGHTxWIDTH")
    image: str | None = _of_a_call("image", "a file")
    strength: float | None = _of_a_call("strength", f"{STRENGTH:g} if not given, {STRENGTH_WITH_MASK:g} with --mask")
    mask: str | None = _of_a_call("mask", "a file that is white there")
    control: tuple[str, ...] = _option("folder of a ControlNet", ())
    control_image: tuple[str, ...] = _of_a_call("control_images", "a file for each --control", ())
    control_scale: tuple[float, ...] = _of_a_call("control_scale", "1 if not given", ())
    lora: tuple[str, ...] = _option("a LoRA file, FILE or FILE:WEIGHT", ())
    embedding: tuple[str, ...] = _option("words taught by textual inversion, FILE, or FILE:WORD for a file of one", ())
    clip_skip: int | None = _of_a_call("clip_skip")
    latents: str | None = _of_a_call("latents", "a .npy file")
    dtype: str = _option("what networks compute in and parameters are kept in: float32, bfloat16 or float16", "float32")
    tile_size: int | None = _option("decode larger images in tiles of so many pixels")
    offload_text: bool = _option("keep text encoders in the host's memory while images are drawn", False)
    batch_size: int | None = _option("images at a time; one for each device if not given")
    out: str = _option("folder for the images; files that are there stay", "samples")


def check(request: Request) -> None:
    """Raises ValueError, one line, for what can be refused before anything is loaded."""
    check_seed("--seed", request.seed)
    for field in dataclasses.fields(request):
        values = getattr(request, field.name)
        if any(isinstance(value, float) for value in (values if isinstance(values, tuple) else (values,))):
            check_finite(**{f"--{field.name}": values})
    for text in request.lora:
        check_finite(**{f"--lora {text}: the weight": weighted(text)[1]})
    try:
        check_writable(Path(request.out))
    except hub.CheckpointError as error:
        raise ValueError(f"--out {error}") from None
    if request.dtype == "float16" and jax.default_backend() == "cpu":
        raise ValueError("--dtype float16 is for GPUs; on a CPU it can be bfloat16 or float32")
    if request.guidance is not None and request.guidance <= 1:
        for name in ("negative_prompt", "guidance_rescale"):
            if getattr(request, name):
                raise ValueError(f"--{name} needs guidance, and --guidance is {request.guidance:g}; set it above 1")
    for name in ("num", "batch_size", "steps"):
        value = getattr(request, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be 1 or more")
    if request.dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype is {request.dtype!r}; it can be float32, bfloat16 or float16")
    if len(request.control) != len(request.control_image):
        raise ValueError(f"there are {len(request.control)} --control and {len(request.control_image)} --control_image")
    if len(request.control_scale) not in ((0, 1, len(request.control)) if request.control else (0,)):
        raise ValueError(f"there are {len(request.control_scale)} --control_scale for {len(request.control)} --control")
    if request.mask is not None and request.image is None:
        raise ValueError("--mask needs the --image that it belongs to")
    if request.strength is not None and request.image is None:
        raise ValueError("--strength needs an --image")
    if len(request.negative_prompt) not in (0, 1, len(request.prompt)):
        raise ValueError(
            f"there are {len(request.negative_prompt)} --negative_prompt for {len(request.prompt)} --prompt; give one,"
            " or one for each"
        )


def weighted(text: str) -> tuple[str, float]:
    """FILE or FILE:WEIGHT."""
    file, colon, weight = text.rpartition(":")
    try:
        return (file, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0
