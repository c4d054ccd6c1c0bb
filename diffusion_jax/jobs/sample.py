"""Draws images and shows how they came about: samples.png, sampling.gif, denoising.png, forward_noising.png."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.diffusion.arrays import standard_normal
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import frames_kept
from diffusion_jax.figures import animation, grid, strips
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.session import Session, write_json
from diffusion_jax.methods.latent_diffusion.model import LatentDiffusion

STRIP_ROWS = 6
STRIP_COLUMNS = 9
# Held-out images that are looked through for some of every class.
_MOST_REAL = 2000


def sample(session: Session) -> None:
    """Writes the pictures of a run from its newest checkpoint, and sampling.json with what they took."""
    config = session.config.sampling
    steps = session.method.sampler.num_evaluations
    stride = max(1, steps // config.num_frames)
    generator = Generator(session)
    parts = list(generator.batches(config.num_images, trajectory_stride=stride))
    images = np.concatenate([part[0] for part in parts])
    classes = session.requested_classes
    labels = None if classes is None else np.concatenate([part[1] for part in parts if part[1] is not None])
    trajectory = np.concatenate([part[2] for part in parts if part[2] is not None], axis=1)
    # Where the noise explodes, states are shown at unit size: clipped to [-1, 1] they would be black and white.
    trajectory /= np.maximum(1, trajectory.std(axis=(1, 2, 3, 4), keepdims=True))
    trajectory = np.stack([session.decode(states) for states in trajectory])
    noising = _forward_noising(session)
    real = _real(session, len(images))
    if jax.process_index() != 0:  # all draw and decode, one paints
        return
    timesteps = session.method.sampler.timesteps[np.minimum(frames_kept(steps, stride), steps - 1)]
    names = session.class_names

    columns = classes if classes and classes <= 10 else None
    grid.write_grid(session.workdir / "samples.png", images, labels, names, columns=columns)
    if real is not None:
        grid.write_grid(session.workdir / "real.png", *real, names, columns=columns)
    captions = [f"t = {t:.0f}" for t in timesteps[:-1]] + ["image"]
    animation.write_animation(session.workdir / "sampling.gif", trajectory, captions, labels, names, columns=columns)

    shown = np.unique(np.linspace(0, len(trajectory) - 1, STRIP_COLUMNS).round().astype(int))
    rows = np.arange(min(STRIP_ROWS, len(images)))
    strips.write_strip(
        session.workdir / "denoising.png",
        np.moveaxis(trajectory[np.ix_(shown, rows)], 0, 1),
        [captions[i] for i in shown],
        _row_names(labels, names, rows),
    )
    frames, captions, rows = noising
    strips.write_strip(session.workdir / "forward_noising.png", frames, captions, rows)
    write_json(
        session.workdir / "sampling.json",
        {
            "num_images": generator.num_images,
            "sampler": config.name,
            "num_steps": session.method.sampler.num_steps,
            "guidance_scale": config.guidance_scale if session.guided else None,
            "classifier_scale": config.classifier_scale if config.classifier else None,
            "checkpoint_step": session.parameters[0],
            "seed": session.config.seed,
            "network_evaluations_per_image": steps * (2 if session.guided else 1),
            "compile_seconds": generator.compile_seconds,
            "seconds": generator.sample_seconds,
            "images_per_second": generator.num_images / max(generator.sample_seconds, 1e-9),
        },
    )


def _real(session: Session, count: int) -> tuple[np.ndarray, np.ndarray | None] | None:
    """(images, labels) of so many held-out images, each class in turn as in the samples where samples have classes."""
    images, labels = session.images(session.test_source, _MOST_REAL)
    if session.requested_classes is None:
        return images[:count], None
    wanted = session.labels(np.arange(count))
    assert wanted is not None
    places = {label: iter(np.flatnonzero(labels == label)) for label in np.unique(wanted)}
    chosen = [(place, label) for label in wanted if (place := next(places[label], None)) is not None]
    if not chosen:
        return None
    return images[[place for place, _ in chosen]], np.array([label for _, label in chosen])


def _forward_noising(session: Session) -> tuple[np.ndarray, list[str], list[str]]:
    """Held-out images on their way to noise, q(x_t | x_0) at even quantiles of training's times: a strip's contents."""
    clean, labels = data.load_arrays(session.test_source, limit=STRIP_ROWS)
    if isinstance(session.method, LatentDiffusion):
        x0 = session.method.space.from_latents(jnp.asarray(clean[..., : session.config.data.channels]))
    else:
        x0 = jnp.asarray(data.to_float(clean))
    process: Process = session.method.objective.process
    t = process.time_at(jnp.arange(1, STRIP_COLUMNS) / (STRIP_COLUMNS - 1) * 0.9999)
    noise = standard_normal(jax.random.key(session.config.seed), x0.shape)
    size = jnp.maximum(1, jnp.hypot(process.alpha(t), process.sigma(t)))
    noisy = jax.vmap(lambda t, size: process.add_noise(x0, noise, t) / size)(t, size)
    frames = np.concatenate([np.asarray(x0)[None], np.asarray(noisy)])
    frames = np.stack([session.decode(states) for states in frames])
    captions = ["image"] + [f"t = {value:.3g}" for value in np.asarray(t)]
    names = session.test_source.class_names
    rows = _row_names(labels if names else None, names, np.arange(len(clean)))
    return np.moveaxis(np.clip(frames, -1, 1), 0, 1), captions, rows


def _row_names(labels: np.ndarray | None, names: tuple[str, ...] | None, rows: np.ndarray) -> list[str]:
    if labels is None:
        return []
    return [names[labels[row]] if names else str(labels[row]) for row in rows]
