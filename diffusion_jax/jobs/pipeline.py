"""Draws images from a published checkpoint: PNG files with their settings inside."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import tqdm
from PIL import Image, PngImagePlugin

from diffusion_jax import __version__, batching, hub, readers
from diffusion_jax.diffusion.arrays import key_of_seed
from diffusion_jax.jobs.request import GUIDANCE, STEPS, Request, check, weighted
from diffusion_jax.pipelines.image_request import ImageRequest
from diffusion_jax.pipelines.latent import LatentDiffusion
from diffusion_jax.pipelines.unconditional import Unconditional
from diffusion_jax.readers.images import decode
from diffusion_jax.training import sharding
from diffusion_jax.training.logging import say


def draw(request: Request) -> list[Path]:
    """Writes the images and prints what they took; returns the files.

    Raises:
      ValueError: one line for the user, before anything is drawn where that can be known.
      NotFiniteError: an image is not finite; those before it are written.
    """
    begun = time.monotonic()
    check(request)
    drawer = _open(request)
    count = len(drawer.prompts)
    size = min(request.batch_size or jax.device_count(), count)
    out = Path(request.out)
    loaded = time.monotonic()

    files: list[Path] = []
    times: list[tuple[float, int]] = []
    bar = tqdm.tqdm(total=count, desc="drawing", unit="image", file=sys.stderr, disable=not sys.stderr.isatty())
    with bar:
        for places, wanted in batching.places(count, size):
            started = time.monotonic()
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key_of_seed(request.seed), places)
            images = drawer.draw(places, keys)
            _make_folder(out)  # not before: what is refused leaves nothing
            for place, image in zip(places[:wanted], images, strict=False):
                negative = drawer.negatives[place] if drawer.negatives else ""
                files.append(_write(image, out, drawer.told(place), drawer.prompts[place], negative, place))
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


class _Drawer(Protocol):
    """A drawer is a checkpoint and what is asked of it.

    Attributes:
      prompts: of all images, "" where there are none. negatives: of all images; empty where there are none.
    """

    prompts: list[str]
    negatives: list[str]

    def draw(self, places: np.ndarray, keys: jax.Array) -> np.ndarray:
        """Draws the images at these places among all, in [0, 1]."""
        ...

    def told(self, place: int) -> Request:
        """Says what the picture at a place was drawn with, as it is written into its file."""
        ...


def _open(request: Request) -> _Drawer:
    pipe = hub.load_pipeline(
        request.source,
        dtype=request.dtype,
        param_dtype=request.dtype,
        sampler=request.sampler,
        controlnets=request.control,
        tile_size=request.tile_size,
        offload_text=request.offload_text,
    )
    return _OfNoTexts(request, pipe) if isinstance(pipe, Unconditional) else _OfTexts(request, pipe)


class _OfTexts:
    """It draws from prompts."""

    def __init__(self, request: Request, pipe: LatentDiffusion):
        names = [field.name for field in dataclasses.fields(request) if field.name != "label"]
        _refuse_others(request, names, "has prompts")
        if not request.prompt:
            raise ValueError('--prompt "..." is missing')
        if request.lora:
            pipe = hub.add_lora(pipe, [weighted(text) for text in request.lora])
        for text in request.embedding:
            file, _, word = text.partition(":")
            pipe = hub.add_embedding(pipe, file, word or None)
        self.prompts = [prompt for prompt in request.prompt for _ in range(request.num)]
        each = request.num if len(request.negative_prompt) == len(request.prompt) else len(self.prompts)
        self.negatives = [negative for negative in request.negative_prompt for _ in range(each)]
        self._pipe = _on_all_devices(pipe)
        self._starts = _starts(request, len(self.prompts))
        self._shared = self._request_of_all(request)
        self._asked = dataclasses.replace(
            request,
            steps=self._shared["num_steps"],
            guidance=self._shared["guidance_scale"],
            sampler=pipe.schedule.solver,
        )

    def draw(self, places: np.ndarray, keys: jax.Array) -> np.ndarray:
        asked = ImageRequest(
            [self.prompts[place] for place in places],
            [self.negatives[place] for place in places] if self.negatives else None,
            latents=None if self._starts is None else self._starts[places],
            key=keys,
            **self._shared,
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            images = self._pipe.draw(asked)
        for text in sorted({str(warning.message) for warning in caught if warning.category is UserWarning}):
            say(text)
        return images

    def told(self, place: int) -> Request:
        return self._asked

    def _request_of_all(self, request: Request) -> dict[str, Any]:
        """The fields of a request that all images share."""
        size = _size(request.size)
        given: dict[str, Any] = {
            "num_steps": STEPS if request.steps is None else request.steps,
            "guidance_scale": GUIDANCE if request.guidance is None else request.guidance,
            "guidance_rescale": request.guidance_rescale or 0.0,
            "strength": request.strength,
            "clip_skip": request.clip_skip or 0,
        }
        if request.image is not None:
            given["image"] = _read(request.image, "image", size)
            size = given["image"].shape[:2]
        if request.mask is not None:
            given["mask"] = _read(request.mask, "mask", size)
        usual = size or self._pipe.usual_size
        given["control_images"] = [_read(file, "control_image", usual) for file in request.control_image]
        if request.control_scale:
            scales = list(request.control_scale)
            given["control_scale"] = scales * len(request.control) if len(scales) == 1 else scales
        return given | {"size": size}


class _OfNoTexts:
    """It draws without prompts, with or without classes."""

    def __init__(self, request: Request, pipe: Unconditional):
        takes = ["source", "num", "seed", "steps", "sampler", "latents", "dtype", "batch_size", "out"]
        takes += ["label"] if pipe.num_classes is not None else []
        takes += ["guidance"] if pipe.null_class is not None else []
        _refuse_others(request, takes, "draws without prompts")
        if request.label is not None and not 0 <= request.label < (pipe.num_classes or 0):
            raise ValueError(
                f"--label is {request.label}; {request.source} has the classes 0 to {(pipe.num_classes or 0) - 1}"
            )
        self.prompts, self.negatives = [""] * request.num, []
        self._pipe = _on_all_devices(pipe)
        self._starts = _starts(request, request.num)
        self._steps = pipe.num_steps if request.steps is None else request.steps
        self._guidance = 1.0 if request.guidance is None else request.guidance
        self._asked = dataclasses.replace(
            request,
            steps=self._steps,
            guidance=None if pipe.null_class is None else self._guidance,
            sampler=pipe.schedule.solver,
        )

    def draw(self, places: np.ndarray, keys: jax.Array) -> np.ndarray:
        labels = None if self._pipe.num_classes is None else np.array([self._label(place) for place in places])
        starts = None if self._starts is None else self._starts[places]
        return self._pipe(len(places), self._steps, starts, keys, labels=labels, guidance_scale=self._guidance)

    def told(self, place: int) -> Request:
        return dataclasses.replace(self._asked, label=self._label(place))

    def _label(self, place: int) -> int | None:
        """The class that an image is asked to be of; None without classes."""
        classes, label = self._pipe.num_classes, self._asked.label
        return int(place) % classes if classes is not None and label is None else label


def _on_all_devices(pipe: Any) -> Any:
    return pipe.shard(sharding.make_mesh()) if jax.device_count() > 1 else pipe


def _refuse_others(request: Request, takes: Sequence[str], why: str) -> None:
    """Raises ValueError for an option that the checkpoint cannot do anything with."""
    fields = dataclasses.fields(request)
    idle = [f.name for f in fields if f.name not in takes and getattr(request, f.name) != f.default]
    if idle:
        asked, could = (", ".join(f"--{name}" for name in names if name != "source") for names in (idle, takes))
        raise ValueError(f"{request.source} {why}, and does nothing with {asked}; it takes {could}")


def _starts(request: Request, count: int) -> np.ndarray | None:
    """The starts of all images from --latents; None without."""
    if request.latents is None:
        return None
    with readers.decoding(f"--latents {request.latents}", ".npy file"):
        starts = np.load(request.latents, allow_pickle=False)
        if not isinstance(starts, np.ndarray) or not np.issubdtype(starts.dtype, np.floating):
            raise ValueError("it must hold one array of floats")
    if len(starts) != count:
        raise ValueError(f"--latents {request.latents}: holds {len(starts)} starts for {count} images")
    return starts


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
