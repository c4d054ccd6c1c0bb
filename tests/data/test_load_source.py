import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data import ArraySource, load_arrays, load_source


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "unknown data source 'digit'; did you mean 'digits'"),
        ("imagefolder", {}, "did you mean 'image_folder'"),
        ("tdfs:cifar10", {}, "did you mean 'tfds:cifar10'"),
        ("tfds", {}, "did you mean 'tfds:<dataset name>'"),
        ("lsun", {}, r"unknown data source 'lsun' \(sources: digits, image_folder, latents, haar_digits, tfds:<"),
        ("image_folder", {}, "needs path"),
        ("digits", {"path": "x"}, "path='x' is for the sources 'image_folder' and 'latents' only"),
        ("digits", {"data_dir": "x"}, "data_dir='x' is for the sources 'tfds:...' only"),
        ("digits", {"split": "val"}, "split must be 'train' or 'test', got 'val'"),
        ("digits", {"channels": 4}, r"channels must be 1 \(grey\) or 3 \(RGB\), got 4"),
        ("digits", {"image_size": 0}, "image_size must be a positive number of pixels, got 0"),
        ("digits", {"image_size": 8.0}, "image_size must be a positive number of pixels, got 8.0"),
    ],
)
def test_wrong_arguments_are_explained_in_one_line(name, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        load_source(name, **({"split": "train", "image_size": 8} | options))
    assert "\n" not in str(caught.value)


def folder_of(tmp_path, count):
    for index in range(count):
        for split in ("train", "test"):
            path = tmp_path / split / f"class{index // 100}" / f"{index:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2), index).save(path)
    return load_source("image_folder", "test", image_size=2, channels=1, path=str(tmp_path))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory.mktemp("folder"), 200)


@pytest.mark.parametrize("num_threads", [1, 5, None])
def test_load_arrays_keeps_the_order_whatever_the_threads(folder, num_threads):
    images, labels = load_arrays(folder, num_threads=num_threads)
    assert images.shape == (200, 2, 2, 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    np.testing.assert_array_equal(images, np.arange(200)[:, None, None, None] + np.zeros((1, 2, 2, 1)))
    np.testing.assert_array_equal(labels, np.arange(200) // 100)


def test_a_limit_is_spread_evenly_over_sorted_classes(folder):
    images, labels = load_arrays(folder, limit=7)
    np.testing.assert_array_equal(images[:, 0, 0, 0], [0, 28, 57, 85, 114, 142, 171])
    np.testing.assert_array_equal(labels, [0, 0, 0, 0, 1, 1, 1])
    assert len(load_arrays(folder, limit=1000)[0]) == 200


def test_arrays_in_memory_are_copied():
    source = ArraySource(np.zeros((3, 2, 2, 1), np.uint8), np.arange(3))
    images, _ = load_arrays(source)
    images += 1
    assert source.images.max() == 0


def test_a_limit_below_one(folder):
    with pytest.raises(ValueError, match="limit must be at least 1 or None, got 0"):
        load_arrays(folder, limit=0)


@pytest.mark.parametrize(
    ("images", "labels"),
    [(np.zeros((3, 2, 2, 1)), np.arange(3)), (np.zeros((3, 2, 2), np.uint8), np.arange(3)),
     (np.zeros((3, 2, 2, 1), np.uint8), np.arange(4))],
    ids=["dtype", "rank", "labels"],
)  # fmt: skip
def test_array_sources_check_their_arrays(images, labels):
    with pytest.raises(ValueError, match=r"images must be uint8 \[N, H, W, C\]"):
        ArraySource(images, labels)
