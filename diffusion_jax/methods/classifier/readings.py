"""What a run that trains a classifier leaves: held-out images with more and more noise, and what is read in them.

Such a run draws no images, so samples.png and sampling.gif show readings, and evaluation.json has accuracies.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.diffusion.arrays import standard_normal
from diffusion_jax.figures import animation, classifier_report, strips
from diffusion_jax.methods.classifier.noisy_classifier import NoisyClassifier
from diffusion_jax.methods.method import Run

COLUMNS = 8
# Equal shares of training's times, each read at its middle.
LEVELS = 10
TOP = 5
_MOST_IN_ANIMATION = 18


class Reader:
    """Reads images at any noise level. Image i always has the same noise, of which there is more or less."""

    def __init__(self, run: Run):
        self.classifier: NoisyClassifier = run.model
        base = jax.random.fold_in(jax.random.key(run.config.seed), 0xC1)

        def read(
            params: Any, indices: jax.Array, images: jax.Array, quantile: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(base, indices)
            noise = jax.vmap(lambda key: standard_normal(key, images.shape[1:]))(keys)
            t = self.classifier.process.time_at(jnp.broadcast_to(quantile, len(images)))
            noisy = self.classifier.process.add_noise(images, noise, t)
            return noisy, self.classifier.log_probabilities(params, noisy, t)

        self._read = run.batched(read, size=run.config.sampling.batch_size)

    def __call__(self, images: np.ndarray, quantile: float) -> tuple[np.ndarray, np.ndarray]:
        """(noisy images float32 [N, H, W, C], log p(y | x_t) [N, num_classes]) of images uint8 [N, H, W, C]."""
        return self._read(data.to_float(images), quantile=np.float32(quantile))

    def level(self, quantile: float) -> tuple[float, float]:
        """(t, sigma / alpha) there."""
        t = self.classifier.process.time_at(jnp.float32(quantile))
        alpha, sigma = (float(f(t)) for f in (self.classifier.process.alpha, self.classifier.process.sigma))
        return float(t), sigma / alpha if alpha else float("inf")


def sample(run: Run) -> None:
    """Writes samples.png and sampling.gif: held-out images through the noise levels, with the class that is read."""
    config = run.config.sampling
    images, labels = data.load_arrays(run.test_source, limit=max(_MOST_IN_ANIMATION, config.num_images // COLUMNS))
    names = run.test_source.class_names
    reader = Reader(run)
    rows = slice(0, max(1, config.num_images // COLUMNS))
    levels = np.linspace(0, 0.9999, COLUMNS)
    seen = [_shown(reader, images[rows], labels[rows], quantile, names) for quantile in levels]
    moving = slice(0, _MOST_IN_ANIMATION)
    frames = [
        _shown(reader, images[moving], labels[moving], quantile, names)
        for quantile in np.linspace(0.9999, 0, max(2, config.num_frames))
    ]
    if not run.paints:  # all read, one paints
        return
    strips.write_strip(
        run.workdir / "samples.png",
        np.stack([noisy for noisy, _, _ in seen], axis=1),
        [f"t = {reader.level(quantile)[0]:.3g}" for quantile in levels],
        [_name(label, names) for label in labels[rows]],
        [reading for row in zip(*(readings for _, readings, _ in seen), strict=True) for reading in row],
    )
    captions = [caption for _, _, caption in frames]
    animation.write_readings(
        run.workdir / "sampling.gif",
        np.stack([noisy for noisy, _, _ in frames]),
        captions,
        [readings for _, readings, _ in frames],
    )


def evaluate(run: Run) -> None:
    """Writes evaluation.json: the accuracy of held-out images by noise level, and of training images, with protocol."""
    config = run.config
    step, _ = run.parameters
    begun = time.monotonic()
    limit = config.evaluation.max_reference_images
    test, train = (data.load_arrays(source, limit=limit) for source in (run.test_source, run.train_source))
    reader = Reader(run)
    middles = (np.arange(LEVELS) + 0.5) / LEVELS
    levels = {quantile: _scores(reader(test[0], quantile)[1], test[1]) for quantile in (0.0, *middles)}
    training = [_scores(reader(train[0], quantile)[1], train[1])["accuracy"] for quantile in middles]
    if not run.paints:
        return
    # One number for each image, so that the error is that of other images.
    means = {name: np.mean([levels[q][name] for q in middles], axis=0) for name in levels[0.0]}
    result: dict[str, Any] = {name: float(values.mean()) for name, values in means.items()}
    result |= {
        "accuracy_standard_error": float(means["accuracy"].std() / np.sqrt(len(test[1]))),
        "training_accuracy": float(np.mean(training)),
        "chance": float(np.bincount(test[1]).max() / len(test[1])),
        "by_noise_level": [
            dict(zip(("t", "noise_to_signal"), reader.level(quantile), strict=True))
            | {name: float(values.mean()) for name, values in scores.items()}
            for quantile, scores in levels.items()
        ],
        "protocol": {
            "dataset": config.data.name,
            "images": f"{len(test[1])} of the test split, {len(train[1])} of the training split",
            "noise_levels": f"the least, and the middles of {LEVELS} equal shares of training's times; the totals are "
            "means over these shares",
            "noise": "one draw for each image, the same at every level",
            "chance": "always the commonest class of the test images",
            "cross_entropy": "nats",
            "seed": config.seed,
            "checkpoint_step": step,
            "parameters": "EMA",
            "matmul_precision": config.training.matmul_precision,
            "device": jax.devices()[0].device_kind,
        },
        "seconds": {"read": time.monotonic() - begun},
    }
    run.write_json("evaluation.json", result)
    print(
        f"accuracy over all noise levels {result['accuracy']:.1%} (training images: {result['training_accuracy']:.1%}),"
        f" at the least noise {result['by_noise_level'][0]['accuracy']:.1%}",
        file=sys.stderr,
    )


def write_report(run: Run, basics: Mapping[str, Any], animation: Path) -> None:
    """Writes report.html, of the basics of every report and the GIF."""
    shared = {field.name for field in dataclasses.fields(classifier_report.ClassifierReport)} & basics.keys()
    content = classifier_report.ClassifierReport(
        **{name: basics[name] for name in shared}, readings=basics["samples"], animation=animation
    )
    classifier_report.write_classifier_report(run.workdir / "report.html", content)


def _shown(
    reader: Reader, images: np.ndarray, labels: np.ndarray, quantile: float, names: tuple[str, ...] | None
) -> tuple[np.ndarray, list[str], str]:
    """(noisy images as they are seen, what is read in each, a caption)."""
    noisy, log_probabilities = reader(images, quantile)
    read, certainty = log_probabilities.argmax(-1), np.exp(log_probabilities.max(-1))
    right = read == labels
    marks = [
        f"{'✓' if ok else '✗'} {_name(label, names)} {share:.0%}"
        for ok, label, share in zip(right, read, certainty, strict=True)
    ]
    # Where the noise explodes, images are shown at unit size: clipped to [-1, 1] they would be black and white.
    noisy = noisy / max(1.0, float(noisy.std()))
    t, ratio = reader.level(quantile)
    return noisy, marks, f"t = {t:.3g}, noise to signal {ratio:.3g}, {right.mean():.0%} read right"


def _scores(log_probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """name -> a value for each image."""
    own = np.take_along_axis(log_probabilities, labels[:, None], 1)
    scores = {"accuracy": (log_probabilities.argmax(-1) == labels).astype(np.float64)}
    if log_probabilities.shape[1] > TOP:
        scores[f"top_{TOP}_accuracy"] = ((log_probabilities > own).sum(-1) < TOP).astype(np.float64)
    return scores | {"cross_entropy": -own[:, 0].astype(np.float64)}


def _name(label: int, names: tuple[str, ...] | None) -> str:
    return names[label] if names else str(label)
