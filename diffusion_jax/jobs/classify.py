"""What a run that trains a classifier leaves: held-out images with more and more noise, and what is read in them.

Such a run draws no images, so samples.png and sampling.gif show readings, and evaluation.json has accuracies.
"""

from __future__ import annotations

import functools
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.diffusion.arrays import standard_normal
from diffusion_jax.figures import animation, classifier_report, strips
from diffusion_jax.jobs import records
from diffusion_jax.jobs.report import machine
from diffusion_jax.jobs.session import Session, write_json
from diffusion_jax.methods.classifier.noisy_classifier import NoisyClassifier
from diffusion_jax.training import sharding
from diffusion_jax.training.logging import count_parameters

COLUMNS = 8
# Equal shares of training's times, each read at its middle.
LEVELS = 10
TOP = 5
_MOST_IN_ANIMATION = 18


class Reader:
    """Reads images at any noise level. Image i always has the same noise, of which there is more or less."""

    def __init__(self, session: Session):
        assert isinstance(session.trained, NoisyClassifier)
        self.classifier: NoisyClassifier = session.trained
        self._params = session.parameters[1]
        self._size = session.config.sampling.batch_size
        split = sharding.batch_sharding(session.mesh)
        base = jax.random.fold_in(jax.random.key(session.config.seed), 0xC1)
        precision = session.config.training.matmul_precision

        @functools.partial(jax.jit, out_shardings=sharding.replicated(session.mesh))
        def read(
            params: Any, images: jax.Array, indices: jax.Array, quantile: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            images, indices = jax.lax.with_sharding_constraint((images, indices), split)
            keys = jax.vmap(jax.random.fold_in, (None, 0))(base, indices)
            noise = jax.vmap(lambda key: standard_normal(key, images.shape[1:]))(keys)
            t = self.classifier.process.time_at(jnp.broadcast_to(quantile, len(images)))
            with jax.default_matmul_precision(precision):
                noisy = self.classifier.process.add_noise(images, noise, t)
                return noisy, self.classifier.log_probabilities(params, noisy, t)

        self._read = read

    def __call__(self, images: np.ndarray, quantile: float) -> tuple[np.ndarray, np.ndarray]:
        """(noisy images float32 [N, H, W, C], log p(y | x_t) [N, num_classes]) of images uint8 [N, H, W, C]."""
        noisy, log_probabilities = [], []
        for start in range(0, len(images), self._size):
            indices = np.arange(start, start + self._size)
            part = data.to_float(images[indices % len(images)])  # the last batch is filled up: one shape compiles
            x, log_p = self._read(self._params, part, indices.astype(np.int32), np.float32(quantile))
            count = min(self._size, len(images) - start)
            noisy.append(np.asarray(x)[:count])
            log_probabilities.append(np.asarray(log_p)[:count])
        return np.concatenate(noisy), np.concatenate(log_probabilities)

    def level(self, quantile: float) -> tuple[float, float]:
        """(t, sigma / alpha) there."""
        t = self.classifier.process.time_at(jnp.float32(quantile))
        alpha, sigma = (float(f(t)) for f in (self.classifier.process.alpha, self.classifier.process.sigma))
        return float(t), sigma / alpha if alpha else float("inf")


def sample(session: Session) -> None:
    """Writes samples.png and sampling.gif: held-out images through the noise levels, with the class that is read."""
    config = session.config.sampling
    images, labels = data.load_arrays(session.test_source, limit=max(_MOST_IN_ANIMATION, config.num_images // COLUMNS))
    names = session.test_source.class_names
    reader = Reader(session)
    rows = slice(0, max(1, config.num_images // COLUMNS))
    levels = np.linspace(0, 0.9999, COLUMNS)
    seen = [_shown(reader, images[rows], labels[rows], quantile, names) for quantile in levels]
    moving = slice(0, _MOST_IN_ANIMATION)
    frames = [
        _shown(reader, images[moving], labels[moving], quantile, names)
        for quantile in np.linspace(0.9999, 0, max(2, config.num_frames))
    ]
    if jax.process_index() != 0:  # all read, one paints
        return
    strips.write_strip(
        session.workdir / "samples.png",
        np.stack([noisy for noisy, _, _ in seen], axis=1),
        [f"t = {reader.level(quantile)[0]:.3g}" for quantile in levels],
        [_name(label, names) for label in labels[rows]],
        [reading for row in zip(*(readings for _, readings, _ in seen), strict=True) for reading in row],
    )
    captions = [caption for _, _, caption in frames]
    animation.write_readings(
        session.workdir / "sampling.gif",
        np.stack([noisy for noisy, _, _ in frames]),
        captions,
        [readings for _, readings, _ in frames],
    )


def evaluate(session: Session) -> None:
    """Writes evaluation.json: the accuracy of held-out images by noise level, and of training images, with protocol."""
    config = session.config
    step, _ = session.parameters
    begun = time.monotonic()
    limit = config.evaluation.max_reference_images
    test, train = (data.load_arrays(source, limit=limit) for source in (session.test_source, session.train_source))
    reader = Reader(session)
    middles = (np.arange(LEVELS) + 0.5) / LEVELS
    levels = {quantile: _scores(reader(test[0], quantile)[1], test[1]) for quantile in (0.0, *middles)}
    training = [_scores(reader(train[0], quantile)[1], train[1])["accuracy"] for quantile in middles]
    if jax.process_index() != 0:
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
    write_json(session.workdir / "evaluation.json", result)
    print(
        f"accuracy over all noise levels {result['accuracy']:.1%} (training images: {result['training_accuracy']:.1%}),"
        f" at the least noise {result['by_noise_level'][0]['accuracy']:.1%}",
        file=sys.stderr,
    )


def report(session: Session) -> None:
    """Writes report.html. Raises ConfigError, naming the file, where training, sampling or evaluation left nothing."""
    config, workdir = session.config, session.workdir
    records.require(workdir, "metrics.jsonl", "samples.png", "evaluation.json")
    step, params = session.parameters
    if jax.process_index() != 0:  # reading checkpoints takes all processes, the page one
        return
    rows = records.rows(workdir)
    spent, scores = records.read(workdir, "timing.json"), records.read(workdir, "evaluation.json")
    size, images = config.data.image_size, config.training.batch_size * step
    content = classifier_report.ClassifierReport(
        title=config.name,
        summary=(
            f"A classifier of noisy {config.data.name} images at {size}x{size} pixels, for the process "
            f"{config.process.name}, trained for {step:,} steps on {images:,} images. It guides diffusion models of "
            "this process: sampling.classifier names its work directory."
        ),
        command=session.command,
        settings=config.to_dict(),
        num_parameters=count_parameters(params),
        parameter_overview=(workdir / "parameters.txt").read_text(encoding="utf-8"),
        metrics=rows,
        scores=scores,
        timing={
            "compile_training_seconds": spent.get("compile_seconds", 0.0),
            "training_seconds": spent.get("train_seconds", 0.0),
            "training_images_per_second": spent.get("images_per_second", 0.0),
            "evaluation_seconds": scores["seconds"]["read"],
        },
        machine=machine(),
        readings=workdir / "samples.png",
        animation=workdir / "sampling.gif",
    )
    classifier_report.write_classifier_report(workdir / "report.html", content)


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
