"""Scores of generated images on data sets for which Inception's features mean little.

A Frechet distance has no scale of its own, so each stands beside the same distance between training and test
images: a generator whose images are as good as new real ones scores a ratio near one. Left sides are of equal
size, because the distance grows as samples become fewer (Chong & Forsyth 2020), and of equal class
proportions where classes are known. The classifier has seen the training images, which raises their distance a
little: on the digits, real images that it has not seen score a ratio of 0.8. None of these values is an FID, and
none may be compared between different protocols.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import flax
import jax
import numpy as np
import optax
from numpy.typing import ArrayLike, NDArray

from diffusion_jax.metrics.classifier import FEATURES, Classifier
from diffusion_jax.metrics.distances import frechet_distance, moments
from diffusion_jax.metrics.pixels import average_down, checked_images
from diffusion_jax.version import __version__

# Random training subsets over which the train-test distance is averaged.
BASELINE_DRAWS = 10
PIXEL_SIDE = 8

Indices = NDArray[np.int64]
LabelledImages = tuple[ArrayLike, ArrayLike]


def score_generated(
    generated: ArrayLike,
    requested: ArrayLike | None,
    train: LabelledImages,
    test: LabelledImages,
    classifier: Classifier,
    *,
    dataset: str,
    quantisation: str,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Frechet distance in the classifier's features, and how often it reads the class that was asked for.

    Args:
      generated: uint8 [N, H, W, C].
      requested: the class asked for, int [N]; None for an unconditional generator.
      train, test: (images uint8 [M, H, W, C], labels int [M]) of both splits; the classifier was trained on
      `train`. classifier: from `train_classifier`. dataset: its name, for the protocol. quantisation: the
      rule by which the generated images became uint8, for the protocol. class_names: keys of the shares per
      class; the class numbers by default. seed: chooses the training subsets of the baseline.

    Returns:
      A JSON-able dict:
      frechet_distance_classifier: between generated and test images.
      frechet_distance_classifier_train_test: the same between test images and as many training images (the
      mean over
        `BASELINE_DRAWS` random subsets), and ..._train_test_std, the deviation over these subsets.
      frechet_distance_classifier_ratio: the first over the second; None where the second is zero.
      read_as_requested: the share of generated images that the classifier reads as the class asked for, and
        read_as_requested_per_class, by class name (both absent for an unconditional generator).
      classifier_test_accuracy: the same share for test images and their labels: what perfect images would
      reach. protocol: what the values depend on.

    Raises:
      ValueError: images or labels of the wrong shape, or fewer than two images to compare.
    """
    generated = checked_images(generated, "generated")
    train_labels, test_labels = np.asarray(train[1]), np.asarray(test[1])
    labels = None if requested is None else _checked_requested(requested, len(generated), classifier.num_classes)
    compared, subsets = _matched(len(generated), labels, len(train_labels), train_labels, seed)
    scores = _frechet_block(
        "frechet_distance_classifier",
        classifier.features(generated[compared]),
        classifier.features(train[0]),
        classifier.features(test[0]),
        subsets,
    )
    if labels is not None:
        read = classifier.classify(generated) == labels
        names = class_names or [str(label) for label in range(classifier.num_classes)]
        scores["read_as_requested"] = float(read.mean())
        scores["read_as_requested_per_class"] = {
            names[label]: float(read[labels == label].mean()) for label in np.unique(labels)
        }
    scores["classifier_test_accuracy"] = classifier.accuracy(test[0], test_labels)
    scores["protocol"] = {
        "features": f"classifier-{dataset}-{FEATURES}",
        "classifier": {"trained_on": f"{dataset}, training split", **classifier.description},
        **_common_protocol(len(generated), len(compared), len(test_labels), labels is not None, quantisation, seed),
    }
    return scores


def score_generated_pixels(
    generated: ArrayLike, train: ArrayLike, test: ArrayLike, *, dataset: str, quantisation: str, seed: int = 0
) -> dict[str, Any]:
    """Frechet distance of the images averaged down to 8x8 pixels: for data without labels.

    It sees layout, brightness and colour, not detail. Arguments and result as in `score_generated`, images
    only; the values are named frechet_distance_pixels, ..._train_test, ..._train_test_std and ..._ratio.
    """
    images = [
        checked_images(value, name) for value, name in ((generated, "generated"), (train, "train"), (test, "test"))
    ]
    left, train_features, test_features = (
        average_down(array, PIXEL_SIDE).reshape(len(array), -1) / 255.0 for array in images
    )
    compared, subsets = _matched(len(left), None, len(train_features), None, seed)
    scores = _frechet_block("frechet_distance_pixels", left[compared], train_features, test_features, subsets)
    scores["protocol"] = {
        "features": f"pixels averaged down to {PIXEL_SIDE}x{PIXEL_SIDE}, 0 to 1",
        "dataset": dataset,
        **_common_protocol(len(left), len(compared), len(test_features), False, quantisation, seed),
    }
    return scores


def _frechet_block(
    name: str, generated: ArrayLike, train: NDArray[Any], test: ArrayLike, subsets: Iterator[Indices]
) -> dict[str, Any]:
    reference = moments(test)
    value = frechet_distance(*moments(generated), *reference)
    baseline = [frechet_distance(*moments(train[subset]), *reference) for subset in subsets]
    mean = float(np.mean(baseline))
    return {
        name: value,
        f"{name}_train_test": mean,
        f"{name}_train_test_std": float(np.std(baseline)),
        f"{name}_ratio": value / mean if mean > 0 else None,
    }


def _matched(
    generated: int, requested: NDArray[Any] | None, train: int, train_labels: NDArray[Any] | None, seed: int
) -> tuple[Indices, Iterator[Indices]]:
    """The generated images to compare, and training subsets with as many images (of each class, where it is known).

    All generated images are compared unless the training split has fewer (of a class); then the first so
    many.
    """
    if requested is None or train_labels is None:
        requested, train_labels = np.zeros(generated, np.int64), np.zeros(train, np.int64)
    left = {label: np.flatnonzero(requested == label) for label in np.unique(requested)}
    right = {label: np.flatnonzero(train_labels == label) for label in left}
    counts = {label: min(len(left[label]), len(right[label])) for label in left}
    compared = np.sort(np.concatenate([left[label][:count] for label, count in counts.items()]))

    def draws() -> Iterator[Indices]:
        generator = np.random.default_rng(seed)
        for _ in range(BASELINE_DRAWS):
            yield np.concatenate([generator.choice(right[label], n, replace=False) for label, n in counts.items()])

    return compared, draws()


def _common_protocol(
    generated: int, compared: int, test: int, matched_classes: bool, quantisation: str, seed: int
) -> dict[str, Any]:
    proportions = "with as many images of each class" if matched_classes else "with as many images"
    return {
        "distance": "Frechet distance of Gaussians, float64, covariance with divisor N - 1; not an FID",
        "generated_images": generated,
        "compared_images": compared,
        "reference": f"test split, {test} images",
        "train_test": f"mean over {BASELINE_DRAWS} random subsets of the training split {proportions}",
        "quantisation": quantisation,
        "seed": seed,
        "versions": {
            "diffusion_jax": __version__,
            "jax": jax.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            "numpy": np.__version__,
        },
    }


def _checked_requested(requested: ArrayLike, count: int, num_classes: int) -> NDArray[np.int64]:
    labels = np.asarray(requested)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"requested must be integers [{count}], one for each image, got {labels.dtype} {labels.shape}")
    if count and (labels.min() < 0 or labels.max() >= num_classes):
        raise ValueError(f"requested must be from 0 to {num_classes - 1}, got {labels.min()} to {labels.max()}")
    return labels.astype(np.int64)
