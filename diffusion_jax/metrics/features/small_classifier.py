"""The small classifier of :mod:`diffusion_jax.metrics.classifier` as an extractor, for places with no download."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.metrics.classifier import FEATURES, LARGEST_SIDE, Classifier, train_classifier
from diffusion_jax.metrics.features.extractor import EXACT, Extractor, checked_batch, weights_sha256
from diffusion_jax.metrics.pixels import area_weights

DIGITS_CLASSIFIER = "digits-classifier"


def classifier_extractor(classifier: Classifier, name: str) -> Extractor:
    """Features [B, 64] and logits of a trained classifier.

    Its images have the classifier's height and width; where the classifier reads grey images, their three channels
    are averaged. The training of the classifier is part of the settings.
    """
    height, width, channels = classifier.image_shape
    rows, columns = (area_weights(side, min(side, LARGEST_SIDE)) for side in (height, width))

    def apply(params: Any, images: jax.Array) -> dict[str, jax.Array]:
        if checked_batch(images).shape[1:3] != (height, width):
            raise ValueError(f"{name} reads images of {height}x{width}, got {images.shape[1]}x{images.shape[2]}")
        x = images.astype(jnp.float32)
        if channels == 1:
            x = x.mean(axis=-1, keepdims=True)
        if max(height, width) > LARGEST_SIDE:
            x = jnp.einsum("oh,pw,nhwc->nopc", rows, columns, x, precision="highest")
        outputs: Any = classifier.network.apply({"params": params}, x / 127.5 - 1.0)
        return {"features": outputs[0], "logits": outputs[1]}

    settings = {"input_height": height, "input_width": width, "input_channels": channels, "precision": EXACT}
    return Extractor(
        name=name,
        apply=apply,
        params=classifier.params,
        feature_dim=FEATURES,
        weights_sha256=weights_sha256(classifier.params),
        settings=settings | {f"classifier_{field}": value for field, value in classifier.description.items()},
    )


def digits_classifier() -> Extractor:
    """A classifier of 8x8 handwritten digits, trained here in seconds on all of scikit-learn's 1,797."""
    from sklearn.datasets import load_digits  # takes a second to import

    levels, labels = load_digits(return_X_y=True)
    images = np.floor(levels * (255 / 16) + 0.5).astype(np.uint8).reshape(-1, 8, 8, 1)
    return classifier_extractor(train_classifier(images, labels, num_classes=10), DIGITS_CLASSIFIER)
