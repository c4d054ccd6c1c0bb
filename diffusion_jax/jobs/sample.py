"""Draws images and shows how they came about: samples.png, sampling.gif, denoising.png, forward_noising.png."""

from __future__ import annotations

import numpy as np

from diffusion_jax.figures import animation, grid
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.session import Session

STRIP_ROWS = 6
STRIP_COLUMNS = 9
# Held-out images that are looked through for some of every class.
_MOST_REAL = 2000


def sample(session: Session) -> None:
    """Writes the pictures of a run from its newest checkpoint, and sampling.json with what they took."""
    config = session.config.sampling
    stride, captions = session.model.frames(config.num_frames)
    generator = Generator(session)
    parts = list(generator.batches(config.num_images, trajectory_stride=stride))
    images = np.concatenate([part[0] for part in parts])
    classes = session.model.num_requests
    labels = None if classes is None else np.concatenate([part[1] for part in parts if part[1] is not None])
    trajectory = np.concatenate([part[2] for part in parts if part[2] is not None], axis=1)
    # Where the noise explodes, states are shown at unit size: clipped to [-1, 1] they would be black and white.
    trajectory /= np.maximum(1, trajectory.std(axis=(1, 2, 3, 4), keepdims=True))
    trajectory = np.stack([session.decode(states) for states in trajectory])
    real = _real(session, len(images))
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
            "num_images": generator.num_images,
            **session.method.drawn(session),
            "checkpoint_step": session.parameters[0],
            "seed": session.config.seed if config.seed is None else config.seed,
            "compile_seconds": generator.compile_seconds,
            "seconds": generator.sample_seconds,
            "images_per_second": generator.num_images / max(generator.sample_seconds, 1e-9),
        },
    )


def _real(session: Session, count: int) -> tuple[np.ndarray, np.ndarray | None] | None:
    """(images, labels) of so many held-out images, each class in turn as in the samples where samples have classes."""
    images, labels = session.images(session.test_source, _MOST_REAL)
    if session.model.num_requests is None:
        return images[:count], None
    wanted = session.labels(np.arange(count))
    assert wanted is not None
    places = {label: iter(np.flatnonzero(labels == label)) for label in np.unique(wanted)}
    chosen = [(place, label) for label in wanted if (place := next(places[label], None)) is not None]
    if not chosen:
        return None
    return images[[place for place, _ in chosen]], np.array([label for _, label in chosen])
