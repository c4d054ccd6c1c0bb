"""Walks through the latents of models that draw an image from one: what an animation and interpolation.png show."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.figures import strips
from diffusion_jax.methods.method import Run

# In the work directory.
PICTURE = "interpolation.png"
_ROWS, _COLUMNS = 6, 9
# Below this angle, in radians, the arc is as good as straight, and its formula divides nothing by nothing.
_STRAIGHT = 1e-4


def spherical(start: jax.Array, end: jax.Array, count: int) -> jax.Array:
    """Latents [count, N, ...] on the arcs from `start` to `end` [N, ...], in even steps, both ends included.

    On an arc every latent is as likely under a Gaussian as its ends, where a straight line would come too near to the
    middle (White 2016, section 2.1).
    """
    one, other = start.reshape(len(start), -1), end.reshape(len(end), -1)
    norms = jnp.linalg.norm(one, axis=-1) * jnp.linalg.norm(other, axis=-1)
    cosine = jnp.sum(one * other, axis=-1) / jnp.maximum(norms, jnp.finfo(one.dtype).tiny)
    angle = jnp.arccos(jnp.clip(cosine, -1, 1))
    share = jnp.linspace(0, 1, count, dtype=one.dtype)[:, None]
    is_straight = jnp.sin(angle) < _STRAIGHT
    sine = jnp.where(is_straight, 1, jnp.sin(angle))
    first = jnp.where(is_straight, 1 - share, jnp.sin((1 - share) * angle) / sine)
    second = jnp.where(is_straight, share, jnp.sin(share * angle) / sine)
    return (first[..., None] * one + second[..., None] * other).reshape(count, *start.shape)


def write_interpolation(
    run: Run, labels: np.ndarray | None, frames: np.ndarray, captions: Sequence[str] | None = None
) -> None:
    """interpolation.png: some walks from the first to the last of the frames [frames, N, H, W, C], one in each row.

    labels: of the images [N], which name the rows. captions: of the frames; by default their share of the way.
    """
    shown = np.unique(np.linspace(0, len(frames) - 1, _COLUMNS).round().astype(int))
    rows = np.arange(min(_ROWS, frames.shape[1]))
    names = run.train_source.class_names
    titles = [] if labels is None else [names[labels[row]] if names else str(labels[row]) for row in rows]
    if captions is None:
        captions = [f"{place / max(len(frames) - 1, 1):.0%}" for place in range(len(frames))]
    strips.write_strip(
        run.workdir / PICTURE,
        np.moveaxis(frames[np.ix_(shown, rows)], 0, 1),
        [str(captions[place]) for place in shown],
        titles,
    )
