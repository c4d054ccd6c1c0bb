"""Draws images and shows how they came about: samples.png, sampling.gif, denoising.png, forward_noising.png."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_jax import data
from diffusion_jax.data.source import LABEL
from diffusion_jax.figures import animation, grid
from diffusion_jax.jobs import records, saving
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.session import Session
from diffusion_jax.training.events import EventFile
from diffusion_jax.training.logging import say, writing

STRIP_ROWS = 6
STRIP_COLUMNS = 9
# Held-out images that are looked through for some of every class.
_MOST_REAL = 2000
# Images in samples.png; more could not be told apart.
_MOST_SHOWN = 400
# What is shown of a draw, set aside where another draw takes its place.
_PICTURES = ("samples.png", "sampling.gif", "sampling.json")


def sample(session: Session) -> None:
    """Writes the pictures of a run from its newest checkpoint, and sampling.json with what they took."""
    config = session.config.sampling
    stride, captions = session.model.frames(config.num_frames)
    generator = Generator(session)
    settings = {
        **session.method.drawn(session),
        "checkpoint_step": session.parameters[0],
        "seed": session.config.seed if config.seed is None else config.seed,
    }
    if config.save != "none":
        saving.save(session, generator, settings)
    parts = list(generator.batches(min(config.num_images, _MOST_SHOWN), trajectory_stride=stride))
    images = np.concatenate([part[0] for part in parts])
    label = session.model.conditions.get(LABEL)
    classes = None if label is None else label.num_classes
    labels = None if classes is None else np.concatenate([part[1] for part in parts if part[1] is not None])
    trajectory = np.concatenate([part[2] for part in parts if part[2] is not None], axis=1)
    # Where the noise explodes, states are shown at unit size: clipped to [-1, 1] they would be black and white.
    trajectory /= np.maximum(1, trajectory.std(axis=(1, 2, 3, 4), keepdims=True))
    trajectory = np.stack([session.decode(states) for states in trajectory])
    real = _real(session, len(images))
    if session.paints:
        _set_aside(session.workdir, session.method.shows, {"num_images": config.num_images, **settings})
    session.method.pictures(session, labels, trajectory, captions)
    if not session.paints:  # all draw and decode, one paints
        return
    names = session.class_names

    columns = classes if classes and classes <= 10 else None
    grid.write_grid(session.workdir / "samples.png", images, labels, names, columns=columns)
    if real is not None:
        grid.write_grid(session.workdir / "real.png", *real, names, columns=columns)
    animation.write_animation(session.workdir / "sampling.gif", trajectory, captions, labels, names, columns=columns)
    session.write_json(
        "sampling.json",
        {
            "num_images": config.num_images,
            **settings,
            "compile_seconds": generator.compile_seconds,
            "seconds": generator.sample_seconds,
            "images_per_second": generator.num_images / max(generator.sample_seconds, 1e-9),
        },
    )
    events = EventFile(session.workdir / "tensorboard", purge_step=None)
    events.picture(settings["checkpoint_step"], "samples", sheet(images))
    events.close()
    how = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items() if value is not None)
    say(f"wrote samples.png of {len(images)} images ({how}) and sampling.gif")


def sheet(images: np.ndarray, most: int = 16) -> np.ndarray:
    """The first images uint8 [N, H, W, C] side by side and below one another, uint8 [H', W', 3]."""
    images = images[:most]
    images = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
    side = math.ceil(math.sqrt(len(images)))
    filled = np.concatenate([images, np.zeros((side * side - len(images), *images.shape[1:]), np.uint8)])
    height, width = images.shape[1:3]
    return filled.reshape(side, side, height, width, 3).swapaxes(1, 2).reshape(side * height, side * width, 3)


def _set_aside(workdir: Path, shows: Sequence[str], settings: Mapping[str, Any]) -> None:
    """Moves the pictures of a draw with other settings to DIR/earlier/<number>, and says so."""
    there = records.read(workdir, "sampling.json") if (workdir / "sampling.json").is_file() else {}
    wanted = records.written(settings)
    if not there or all(there.get(name) == value for name, value in wanted.items()):
        return
    earlier = workdir / "earlier"
    number = 1 + max((int(path.name) for path in earlier.glob("[0-9]*") if path.name.isdecimal()), default=0)
    with writing(earlier):
        folder = earlier / str(number)
        folder.mkdir(parents=True)
        for name in (*_PICTURES, *shows):
            if (workdir / name).is_file():
                (workdir / name).rename(folder / name)
    say(f"the pictures of the last draw, with other settings, are in {folder} now")


def _real(session: Session, count: int) -> tuple[np.ndarray, np.ndarray | None] | None:
    """(images, labels) of so many held-out images, each class in turn as in the samples where samples have classes."""
    stored, labels = data.load_arrays(session.test_source, limit=_MOST_REAL)
    wanted = session.labels(np.arange(count))
    if wanted is None:
        return session.images.images_of(stored[:count]), None
    places = {label: iter(np.flatnonzero(labels == label)) for label in np.unique(wanted)}
    chosen = [(place, label) for label in wanted if (place := next(places[label], None)) is not None]
    if not chosen:
        return None
    return session.images.images_of(stored[[place for place, _ in chosen]]), np.array([label for _, label in chosen])
