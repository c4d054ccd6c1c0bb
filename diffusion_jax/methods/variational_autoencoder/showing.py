"""What a run shows: test images beside their reconstructions, walks through its latents, and words about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.figures import page, report, strips
from diffusion_jax.figures.formulas import inline
from diffusion_jax.methods import latent_walk
from diffusion_jax.methods.method import Run
from diffusion_jax.methods.variational_autoencoder.model import VariationalAutoencoder

RECONSTRUCTIONS, PLANE = "reconstructions.png", "latent_plane.png"
_ROWS, _COLUMNS = 3, 10
_PLANE_SIDE = 15


def write_reconstructions(run: Run) -> None:
    """reconstructions.png: pairs of rows, test images above and what is made of their latents below."""
    model: VariationalAutoencoder = run.model
    images, labels = data.load_arrays(run.test_source, limit=_ROWS * _COLUMNS)
    real = data.to_float(images)

    def reconstruct(params: Any, indices: jax.Array, image: jax.Array, labels: jax.Array) -> jax.Array:
        del indices
        return model.reconstruct(params, image, labels)

    made = run.batched(reconstruct)(real, labels)
    if not run.paints:
        return
    columns = min(_COLUMNS, len(real))
    rows = len(real) // columns
    pairs = np.stack([part[: rows * columns].reshape(rows, columns, *real.shape[1:]) for part in (real, made)], axis=1)
    strips.write_strip(
        run.workdir / RECONSTRUCTIONS,
        pairs.reshape(2 * rows, columns, *real.shape[1:]),
        [""] * columns,
        ["real", "reconstructed"] * rows,
    )


def write_plane(run: Run) -> None:
    """latent_plane.png, of two latents: images at even quantiles of both (Kingma and Welling 2014, figure 4).

    Of a model that is told classes it is the plane of the first.
    """
    model: VariationalAutoencoder = run.model
    quantiles = [NormalDist().inv_cdf((place + 0.5) / _PLANE_SIDE) for place in range(_PLANE_SIDE)]
    latents = np.stack(np.meshgrid(quantiles, quantiles[::-1]), axis=-1).reshape(-1, 2).astype(np.float32)

    def decode(params: Any, indices: jax.Array, latents: jax.Array) -> jax.Array:
        labels = None if model.num_classes is None else jnp.zeros_like(indices)
        return model.decode(params, latents, labels)

    images = run.batched(decode)(latents)
    if run.paints:
        shape = (_PLANE_SIDE, _PLANE_SIDE, *model.image_shape)
        strips.write_strip(
            run.workdir / PLANE,
            images.reshape(shape),
            [f"{value:.1f}" for value in quantiles],
            [f"{value:.1f}" for value in quantiles[::-1]],
        )


def write_pictures(run: Run, labels: np.ndarray | None, frames: np.ndarray, captions: Sequence[str]) -> None:
    """All of the pictures above. Several processes have to call it together."""
    write_reconstructions(run)
    if run.model.latent_size == 2:
        write_plane(run)
    if run.paints:
        latent_walk.write_interpolation(run, labels, frames, captions)


def parts(
    model: VariationalAutoencoder,
    drawn: Mapping[str, Any],
    pictures: Mapping[str, Path],
    bounds: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Fields of `figures.report.Report`.

    drawn: "draw" and "temperature"; pictures: those that are there, by name; bounds: "likelihood" of evaluation.json.
    """
    z, x = inline("z"), inline("x")
    before = (
        f"<p>An encoder takes an image {x} to a Gaussian of a latent {z}, which is {model.latent_size} numbers; a "
        f"decoder takes a latent to a distribution of the image. What is in a reconstruction went through "
        "the latent:</p>"
    )
    if RECONSTRUCTIONS in pictures:
        caption = "Test images, which the network has not seen, and below each the mean image of its mean latent."
        alt = "Rows of real images, each with a row of their reconstructions below"
        before += page.picture_figure(pictures[RECONSTRUCTIONS], alt, caption, wide=True)
    after = {"sampling": ("From latent to image", _sampling(drawn, pictures))}
    if bounds is not None:
        after["likelihood"] = ("How likely test images are", _likelihood(bounds))
    return {
        "before_training": {"latents": ("From image to latent and back", before)},
        "training_words": _training(model),
        "curves": {"reconstruction": "Reconstruction", "kl": "KL divergence"},
        "after_training": after,
    }


def _training(model: VariationalAutoencoder) -> str:
    z, x = inline("z"), inline("x")
    beta = f"{model.beta:g} times " if model.beta != 1 else ""
    return (
        f"<p>The loss bounds {inline('&minus;log p(x)')} from above. It has two terms. The reconstruction is "
        f"{inline('&minus;log p(x | z)')} of the image, with {z} drawn from the encoder's Gaussian "
        f"{inline('q(z | x)')}. "
        f"The KL divergence from {inline('q(z | x)')} to the prior {inline('N(0, I)')} is what the latent says of {x}; "
        f"without it, latents of the prior would not look like those of images. The loss is the first plus {beta}the "
        f"second, in nats (1.44 bits) for each of an image's {np.prod(model.image_shape):,} values. The "
        f"reconstruction is in {model.likelihood.unit}.</p>"
    )


def _sampling(drawn: Mapping[str, Any], pictures: Mapping[str, Path]) -> str:
    temperature = drawn["temperature"]
    scaled = "" if temperature == 1 else f" times {temperature:g}"
    content = f"<p>A new image is a latent drawn from the prior{scaled}, decoded once. "
    if drawn["draw"] == "mean":
        content += (
            "What is shown is the mean of the decoder's distribution. It is smoother than an image: what a latent does "
            "not say is averaged, not drawn.</p>"
        )
    else:
        content += "What is shown is drawn from the decoder's distribution, with noise of its own in every pixel.</p>"
    if latent_walk.PICTURE in pictures:
        caption = "On the way from one latent to another, in even steps along the arc between them."
        alt = "Images that change from left to right into others"
        content += page.picture_figure(pictures[latent_walk.PICTURE], alt, caption, wide=True)
    if PLANE in pictures:
        caption = "The two latents, at even quantiles of the prior."
        content += page.picture_figure(pictures[PLANE], "Images of a plane of latents", caption, wide=True)
    if "sampling.gif" in pictures:
        caption = "All images of the grid at once, on the way from other latents; the bar shows how far they are."
        content += report.animated(pictures["sampling.gif"], "A grid of images that change into others", caption)
    return content


def _likelihood(bounds: Mapping[str, Any]) -> str:
    rows = [
        ("Importance-weighted bound", f"{bounds['importance_weighted_bound']:.4g} ± {bounds['standard_error']:.2g}"),
        ("Evidence lower bound", f"{bounds['evidence_lower_bound']:.4g}"),
        ("Reconstruction", f"{bounds['reconstruction']:.4g}"),
        ("KL divergence", f"{bounds['kl']:.4g}"),
        ("Latents in use", f"{bounds['active_latents']} of {bounds['latents']}"),
    ]
    return (
        f"<p>Bounds from below of {inline('log p(x)')} of {bounds['images']:,} test images, in {bounds['unit']}. The "
        f"evidence lower bound is minus the sum of reconstruction and KL divergence. The other one weighs "
        f"{bounds['importance_samples']:,} latents of each image by how well they explain it, and comes the closer to "
        "the likelihood itself the more there are.</p>" + page.table(rows)
    )
