"""What a diffusion run shows: images on their way to noise and back."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.diffusion.arrays import standard_normal
from diffusion_jax.diffusion.process import Process
from diffusion_jax.figures import strips
from diffusion_jax.methods.latent_space import Decoder
from diffusion_jax.methods.method import Run

DENOISING, NOISING = "denoising.png", "forward_noising.png"
STRIP_ROWS = 6
STRIP_COLUMNS = 9


def write_denoising(run: Run, labels: np.ndarray | None, frames: np.ndarray, captions: Sequence[str]) -> None:
    """denoising.png: some images from noise to the finished one, of frames [frames, N, ...]."""
    shown = np.unique(np.linspace(0, len(frames) - 1, STRIP_COLUMNS).round().astype(int))
    rows = np.arange(min(STRIP_ROWS, frames.shape[1]))
    strips.write_strip(
        run.workdir / DENOISING,
        np.moveaxis(frames[np.ix_(shown, rows)], 0, 1),
        [str(captions[i]) for i in shown],
        _row_names(labels, run.train_source.class_names if labels is not None else None, rows),
    )


def forward_noising(run: Run, decoder: Decoder | None) -> tuple[np.ndarray, list[str], list[str]]:
    """Held-out images on their way to noise, q(x_t | x_0) at even quantiles of training's times: a strip's contents."""
    clean, labels = data.load_arrays(run.test_source, limit=STRIP_ROWS)
    x0 = jnp.asarray(data.to_float(clean)) if decoder is None else decoder.of_stored(jnp.asarray(clean))
    process: Process = run.model.objective.process
    t = process.time_at(jnp.arange(1, STRIP_COLUMNS) / (STRIP_COLUMNS - 1) * 0.9999)
    noise = standard_normal(jax.random.key(run.config.seed), x0.shape)
    size = jnp.maximum(1, jnp.hypot(process.alpha(t), process.sigma(t)))
    noisy = jax.vmap(lambda t, size: process.add_noise(x0, noise, t) / size)(t, size)
    frames = np.concatenate([np.asarray(x0)[None], np.asarray(noisy)])
    frames = np.stack([run.decode(states) for states in frames])
    captions = ["image"] + [f"t = {value:.3g}" for value in np.asarray(t)]
    names = run.test_source.class_names
    rows = _row_names(labels if names else None, names, np.arange(len(clean)))
    return np.moveaxis(np.clip(frames, -1, 1), 0, 1), captions, rows


def _row_names(labels: np.ndarray | None, names: tuple[str, ...] | None, rows: np.ndarray) -> list[str]:
    if labels is None:
        return []
    return [names[labels[row]] if names else str(labels[row]) for row in rows]
