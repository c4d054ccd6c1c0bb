"""scikit-learn's digits: 1,797 real handwritten digits of 8x8 pixels that come with the package."""

from __future__ import annotations

import numpy as np

from diffusion_jax.data.source import ArraySource

NATIVE_SIZE = 8
TEST_FRACTION = 0.2
_SPLIT_SEED = 1797


def load(split: str, *, image_size: int = NATIVE_SIZE, channels: int = 1) -> ArraySource:
    """The digits, split once and for all into 1,438 training and 359 test images with every class in proportion.

    The file's 17 levels become bytes as floor(v * 255 / 16 + 1/2) (halves up: 8 becomes 128). A larger image_size
    repeats pixels (nearest neighbour), so no grey level is invented; three channels repeat the grey one.

    Args:
        split: "train" or "test".
        image_size: 8 or a multiple of 8.
        channels: 1 or 3.

    Returns:
        The split, in memory, images uint8 [N, image_size, image_size, channels], classes "0" to "9".

    Raises:
        ValueError: an image_size that is no multiple of 8.
    """
    if image_size < NATIVE_SIZE or image_size % NATIVE_SIZE:
        raise ValueError(f"image_size must be 8 or a multiple of 8 for digits (8x8 originals), got {image_size}")
    from sklearn.datasets import load_digits  # takes a second to import, and only this source needs it

    levels, labels = load_digits(return_X_y=True)
    images = np.floor(levels * (255 / 16) + 0.5).astype(np.uint8).reshape(-1, NATIVE_SIZE, NATIVE_SIZE, 1)
    factor = image_size // NATIVE_SIZE
    images = images.repeat(factor, axis=1).repeat(factor, axis=2).repeat(channels, axis=3)

    held_out = _held_out(labels)
    chosen = held_out if split == "test" else ~held_out
    return ArraySource(images[chosen], labels[chosen], num_classes=10, class_names=[str(digit) for digit in range(10)])


def _held_out(labels: np.ndarray) -> np.ndarray:
    """The test mask [N]: a fifth of each class, drawn with a fixed seed."""
    mask = np.zeros(len(labels), bool)
    draw = np.random.RandomState(_SPLIT_SEED)  # the generator whose stream NumPy froze for good
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        mask[draw.permutation(members)[: round(TEST_FRACTION * len(members))]] = True
    return mask
