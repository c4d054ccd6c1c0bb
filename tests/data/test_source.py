"""A whole split by batches: the images of `load_arrays`, with little of them in memory."""

import threading

import numpy as np
import pytest

from diffusion_jax import data


class Counting:
    """Images that say which they are; made when asked for."""

    image_shape, dtype, num_classes, class_names = (2, 2, 1), np.dtype(np.uint8), None, None

    def __init__(self, count, broken=None):
        self.count, self.broken, self.read, self._lock = count, broken, [], threading.Lock()

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if index == self.broken:
            raise ValueError(f"image {index} cannot be read")
        with self._lock:
            self.read.append(index)
        return {"image": np.full(self.image_shape, index, np.uint8), "condition": {}}


@pytest.mark.parametrize(
    ("count", "limit", "size"), [(50, None, 16), (50, 20, 7), (48, 48, 16), (3, 10, 16), (0, 5, 4)]
)
def test_batches_are_the_images_of_load_arrays(count, limit, size):
    expected, _ = data.load_arrays(Counting(count), limit=limit)
    parts = [(images.copy(), present) for images, present in data.batches(Counting(count), size, limit)]
    assert all(images.shape == (size, 2, 2, 1) for images, _ in parts)
    found = [images[:present] for images, present in parts]
    np.testing.assert_array_equal(np.concatenate([expected[:0], *found]), expected)
    assert all(not images[present:].any() for images, present in parts)


def test_other_processes_rows_are_not_read():
    source = Counting(20)
    images, present = zip(*data.batches(source, 8, rows=np.array([2, 3, 6])), strict=True)
    assert sorted(source.read) == [2, 3, 6, 10, 11, 14, 18, 19]
    assert present == (8, 8, 4)
    np.testing.assert_array_equal(images[1][:, 0, 0, 0], [0, 0, 10, 11, 0, 0, 14, 0])


def test_one_batch_is_read_ahead():
    source = Counting(100)
    for number, _ in enumerate(data.batches(source, 10)):
        assert len(source.read) <= 10 * (number + 2)


def test_an_image_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match="image 33 cannot be read"):
        list(data.batches(Counting(50, broken=33), 16))
    with pytest.raises(ValueError, match="limit must be at least 1"):
        next(data.batches(Counting(5), 16, 0))
