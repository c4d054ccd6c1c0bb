"""Images of a run as files of their own, so that any tool can measure them: config.sampling.save."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tqdm
from PIL import Image

from diffusion_jax import readers
from diffusion_jax.config import ConfigError
from diffusion_jax.jobs import records
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.session import Session
from diffusion_jax.jobs.work_directory import write_json
from diffusion_jax.training.logging import say, writing

FOLDER, ARCHIVE = "images", "samples.npz"
_SETTINGS = "settings.json"


def save(session: Session, generator: Generator, settings: dict[str, Any]) -> None:
    """Writes config.sampling.num_images images: DIR/images/000000.png and on, or DIR/samples.npz.

    The archive has arr_0, uint8 [N, H, W, C], and arr_1, the labels that were asked for, as ADM's evaluator reads them.
    Whole batches that are there already are not drawn again, so a run that was killed goes on where it was. Raises
    ConfigError where images of other settings lie in the way.
    """
    folder = session.workdir / FOLDER
    if session.paints:
        _claim(folder, settings)
    count, kind = session.config.sampling.num_images, session.config.sampling.save
    _draw(session, generator, folder, count)
    if not session.paints:
        return
    if kind == "images":
        say(f"{count:,} images are in {folder}")
        return
    classes = session.labels(np.arange(count))
    with writing(session.workdir / ARCHIVE):
        _pack(session.workdir / ARCHIVE, folder, count, classes)
    say(f"{count:,} images are in {session.workdir / ARCHIVE}, as arr_0")


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Makes the folder that of these settings. Raises ConfigError where it is that of others."""
    wanted = records.written(settings)
    path = folder / _SETTINGS
    if path.exists():
        there = readers.read_object(path)
        different = sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name))
        if different:
            name = different[0]
            raise ConfigError(
                f"{folder} holds images that were drawn with {name} {there.get(name)!r}, and now it is "
                f"{wanted.get(name)!r}; move them, or take them away"
            )
        return
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder} holds files that are not of this run; move them, or take them away")
        write_json(path, wanted)


def _draw(session: Session, generator: Generator, folder: Path, count: int) -> None:
    size = session.config.sampling.batch_size
    starts = [start for start in range(0, count, size) if not _is_whole(folder, start, min(start + size, count))]
    done = count - sum(min(size, count - start) for start in starts)
    if done:
        say(f"{done:,} of {count:,} images are there already")
    with tqdm.tqdm(
        total=count, initial=done, desc="images", unit="image", file=sys.stderr, disable=not sys.stderr.isatty()
    ) as bar:
        for start in starts:
            images, _ = generator.part(start, min(size, count - start))
            if session.paints:
                for number, image in enumerate(images, start):
                    _write(folder / f"{number:06d}.png", image)
            bar.update(len(images))


def _is_whole(folder: Path, start: int, stop: int) -> bool:
    return all((folder / f"{number:06d}.png").is_file() for number in range(start, stop))


def _write(path: Path, image: np.ndarray) -> None:
    """A PNG, whole or not there at all, but without waiting for the disk, which 50,000 of them would add up to."""
    partial = path.with_suffix(".part")
    with writing(path):
        with partial.open("wb") as file:
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "png")
        partial.replace(path)


def _pack(path: Path, folder: Path, count: int, labels: np.ndarray | None) -> None:
    """The images as an .npz that is written as it is read: 50,000 may be more than the memory."""
    partial = path.with_name(f".{path.name}.part")
    first = _read(folder, 0)
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        with archive.open("arr_0.npy", "w", force_zip64=True) as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            for image in _images(folder, count):
                file.write(np.ascontiguousarray(image).tobytes())
        if labels is not None:
            with archive.open("arr_1.npy", "w") as file:
                np.lib.format.write_array(file, labels.astype(np.int64))
    partial.replace(path)


def _images(folder: Path, count: int) -> Iterator[np.ndarray]:
    for number in range(count):
        yield _read(folder, number)


def _read(folder: Path, number: int) -> np.ndarray:
    with Image.open(folder / f"{number:06d}.png", formats=("PNG",)) as image:
        array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array
