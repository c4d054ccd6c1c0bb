"""Draws images from a published checkpoint: PNG files with their settings inside."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from PIL import Image, PngImagePlugin

from diffusion_jax import __version__, hub, readers
from diffusion_jax.diffusion.arrays import key_of_seed
from diffusion_jax.jobs.request import Request, check, weighted
from diffusion_jax.pipelines.latent import LatentDiffusion
from diffusion_jax.pipelines.unconditional import Unconditional
from diffusion_jax.readers.images import decode
from diffusion_jax.training import sharding
from diffusion_jax.training.logging import say

# What a checkpoint that draws without prompts can be asked for, one with classes, and one that can be guided.
_UNCONDITIONAL = ("source", "num", "seed", "steps", "sampler", "latents", "dtype", "batch_size", "out")
_OF_CLASSES, _GUIDED = ("label",), ("guidance",)


def draw(request: Request) -> list[Path]:
    """Writes the images and prints what they took; returns the files.

    Raises:
      ValueError: one line for the user, before anything is drawn where that can be known.
      NotFiniteError: an image is not finite; those before it are written.
    """
    begun = time.monotonic()
    check(request)
    pipe = _open(request)
    prompts = [prompt for prompt in request.prompt for _ in range(request.num)] or [""] * request.num
    negatives = list(request.negative_prompt)
    if len(negatives) == len(request.prompt):
        negatives = [negative for negative in negatives for _ in range(request.num)]
    elif negatives:
        negatives = negatives * len(prompts)
    devices = jax.device_count()
    size = min(request.batch_size or devices, len(prompts))
    if devices > 1:
        pipe = pipe.shard(sharding.make_mesh())
    given = _inputs(request, pipe, len(prompts))
    asked = dataclasses.replace(
        request,
        steps=_steps(request, pipe),
        sampler=pipe.schedule.solver,
        guidance=_guidance(request, pipe),
    )
    out = Path(request.out)
    loaded = time.monotonic()

    files: list[Path] = []
    times: list[tuple[float, int]] = []
    bar = tqdm.tqdm(total=len(prompts), desc="drawing", unit="image", file=sys.stderr, disable=not sys.stderr.isatty())
    with bar:
        for places in _batches(len(prompts), size):
            started = time.monotonic()
            images = _draw_batch(pipe, request, prompts, negatives, given, places)
            _make_folder(out)  # not before: what is refused leaves nothing
            wanted = len(set(places.tolist()))
            for place, image in zip(places[:wanted], images, strict=False):
                told = dataclasses.replace(asked, label=_label(request, pipe, place))
                files.append(_write(image, out, told, prompts[place], negatives[place] if negatives else "", place))
            times.append((time.monotonic() - started, wanted))
            bar.update(wanted)
    first = f"first image after {time.monotonic() - begun if len(times) == 1 else loaded - begun + times[0][0]:.1f} s"
    rest = times[1:]
    steady = f", then {sum(t for t, _ in rest) / sum(n for _, n in rest):.2f} s an image" if rest else ""
    say(f"{first} ({loaded - begun:.1f} s to load){steady}; {len(files)} in {out}")
    return files


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {out}: cannot be made: {error.strerror}") from None


def _open(request: Request) -> LatentDiffusion | Unconditional:
    pipe = hub.load_pipeline(
        request.source,
        dtype=request.dtype,
        param_dtype=request.dtype,
        sampler=request.sampler,
        controlnets=request.control,
        tile_size=request.tile_size,
        offload_text=request.offload_text,
    )
    if isinstance(pipe, Unconditional):
        takes = (
            *_UNCONDITIONAL,
            *(_OF_CLASSES if pipe.num_classes is not None else ()),
            *(_GUIDED if pipe.null_class is not None else ()),
        )
        _refuse_others(request, takes, "draws without prompts")
        classes = pipe.num_classes or 0
        if request.label is not None and not 0 <= request.label < classes:
            raise ValueError(f"--label is {request.label}; {request.source} has the classes 0 to {classes - 1}")
        return pipe
    _refuse_others(
        request, [field.name for field in dataclasses.fields(request) if field.name != "label"], "has prompts"
    )
    if not request.prompt:
        raise ValueError('--prompt "..." is missing')
    if request.lora:
        pipe = hub.add_lora(pipe, [weighted(text) for text in request.lora])
    for text in request.embedding:
        file, _, word = text.partition(":")
        pipe = hub.add_embedding(pipe, file, word or None)
    return pipe


def _refuse_others(request: Request, takes: Sequence[str], why: str) -> None:
    """Raises ValueError for an option that the checkpoint cannot do anything with."""
    fields = dataclasses.fields(request)
    idle = [f.name for f in fields if f.name not in takes and getattr(request, f.name) != f.default]
    if idle:
        asked, could = (", ".join(f"--{name}" for name in names if name != "source") for names in (idle, takes))
        raise ValueError(f"{request.source} {why}, and does nothing with {asked}; it takes {could}")


def _inputs(request: Request, pipe: Any, count: int) -> dict[str, Any]:
    """Arrays and sizes that all batches share, and the latents of all images."""
    given: dict[str, Any] = {}
    if request.latents is not None:
        with readers.decoding(f"--latents {request.latents}", ".npy file"):
            given["latents"] = np.load(request.latents, allow_pickle=False)
            if not isinstance(given["latents"], np.ndarray) or not np.issubdtype(given["latents"].dtype, np.floating):
                raise ValueError("it must hold one array of floats")
        if len(given["latents"]) != count:
            raise ValueError(f"--latents {request.latents}: holds {len(given['latents'])} starts for {count} images")
    if isinstance(pipe, Unconditional):
        return given
    size = _size(request.size)
    if request.image is not None:
        given["image"] = _read(request.image, "image", size)
        size = given["image"].shape[:2]
    if request.mask is not None:
        given["mask"] = _read(request.mask, "mask", size)
    given["control_images"] = [_read(file, "control_image", size or pipe.usual_size) for file in request.control_image]
    if size is not None:
        given["size"] = size
    return given


def _steps(request: Request, pipe: LatentDiffusion | Unconditional) -> int:
    if request.steps is not None:
        return request.steps
    return pipe.num_steps if isinstance(pipe, Unconditional) else 50


def _guidance(request: Request, pipe: LatentDiffusion | Unconditional) -> float | None:
    """The scale; None where there is nothing to guide by."""
    if request.guidance is not None:
        return request.guidance
    if not isinstance(pipe, Unconditional):
        return 7.5
    return None if pipe.null_class is None else 1.0


def _label(request: Request, pipe: LatentDiffusion | Unconditional, place: int) -> int | None:
    """The class that an image is asked to be of; None without classes."""
    if not isinstance(pipe, Unconditional) or pipe.num_classes is None:
        return None
    return int(place) % pipe.num_classes if request.label is None else request.label


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"--size is {text!r}; it must be HEIGHTxWIDTH, for example 512x768")
    return int(height), int(width)


def _read(file: str, flag: str, size: tuple[int, int] | None) -> np.ndarray:
    """An image as float [H, W, 3] in [0, 1], resized if a size is given."""
    try:
        picture = decode(Path(file)).convert("RGB")
    except readers.ReadError as error:
        raise ValueError(f"--{flag} {file}: not a readable image ({error})") from None
    if size is not None and (picture.height, picture.width) != size:
        picture = picture.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(picture, np.float32) / 255


def _batches(count: int, size: int) -> Iterator[np.ndarray]:
    """The places of the images in batches of one size; the last is filled up with its last image."""
    for start in range(0, count, size):
        yield np.minimum(np.arange(start, start + size), count - 1)


def _draw_batch(
    pipe: Any, request: Request, prompts: list[str], negatives: list[str], given: dict[str, Any], places: np.ndarray
) -> np.ndarray:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key_of_seed(request.seed), places)
    latents = given["latents"][places] if "latents" in given else None
    if isinstance(pipe, Unconditional):
        labels = None if pipe.num_classes is None else np.array([_label(request, pipe, place) for place in places])
        scale = 1.0 if request.guidance is None else request.guidance
        return pipe(len(places), _steps(request, pipe), latents, keys, labels=labels, guidance_scale=scale)
    shared = {name: value for name, value in given.items() if name != "latents"}
    if request.control_scale:
        scales = list(request.control_scale)
        shared["control_scale"] = scales * len(request.control) if len(scales) == 1 else scales
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        images = pipe(
            [prompts[place] for place in places],
            [negatives[place] for place in places] if negatives else None,
            _steps(request, pipe),
            _guidance(request, pipe),
            request.guidance_rescale or 0.0,
            latents,
            keys,
            strength=request.strength,
            clip_skip=request.clip_skip or 0,
            **shared,
        )
    for text in sorted({str(warning.message) for warning in caught if warning.category is UserWarning}):
        say(text)
    return images


def _write(image: np.ndarray, out: Path, request: Request, prompt: str, negative: str, place: int) -> Path:
    """The image under the next free number; rounded to the nearest of 256 values, as diffusers does."""
    pixels = np.round(np.asarray(image) * 255).astype(np.uint8)
    settings = {name: value for name, value in dataclasses.asdict(request).items() if value not in (None, (), "")}
    settings |= {"prompt": prompt, "negative_prompt": negative, "index": int(place), "version": __version__}
    info = PngImagePlugin.PngInfo()
    info.add_itxt("diffusion_jax", json.dumps(settings, ensure_ascii=False))
    # what the web interfaces write and read
    height, width = pixels.shape[:2]
    info.add_itxt(
        "parameters",
        f"{prompt}\nNegative prompt: {negative}\nSteps: {request.steps}, Sampler: {request.sampler},"
        + ("" if request.guidance is None else f" CFG scale: {request.guidance:g},")
        + f" Seed: {request.seed}, Size: {width}x{height}, Model: {request.source}",
    )
    encoded = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(encoded, format="PNG", pnginfo=info)
    numbers = [int(file.stem) for file in out.glob("[0-9]*.png") if file.stem.isdecimal()]
    number = max(numbers, default=-1) + 1
    while True:
        path = out / f"{number:05d}.png"
        try:
            file = path.open("xb")  # never over another
        except FileExistsError:
            number += 1
            continue
        except OSError as error:
            raise ValueError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            with file:
                file.write(encoded.getvalue())
        except OSError as error:
            path.unlink(missing_ok=True)  # half a picture is none
            raise ValueError(f"{path}: cannot be written: {error.strerror}") from None
        return path
