"""Latents in files: rows, splits and labels, and the refusals of what does not fit."""

import json

import numpy as np
import pytest

from diffusion_jax import data

OPTIONS = {"name": "latents", "image_size": 2, "channels": 4}


def folder(root, channels=4, **record):
    rows = np.arange(10, dtype=np.float16)[:, None, None, None] + np.zeros((10, 2, 2, channels), np.float16)
    for split, part in (("train", slice(0, 7)), ("test", slice(7, 10))):
        (root / split).mkdir()
        np.save(root / split / "latents-00000.npy", rows[part][:2])
        np.save(root / split / "latents-00001.npy", rows[part][2:])
        np.save(root / split / "labels.npy", np.arange(10)[part] % 3)
    (root / "latents.json").write_text(json.dumps({"num_classes": 5, "mean": [0] * 4, "std": [1] * 4, **record}))
    return str(root)


def test_rows_of_all_shards_with_their_labels(tmp_path):
    path = folder(tmp_path, class_names=list("abcde"))
    source = data.load_source(split="train", path=path, **OPTIONS)
    images, labels = data.load_arrays(source)
    np.testing.assert_array_equal(images[:, 1, 1, 3], np.arange(7))
    np.testing.assert_array_equal(labels, np.arange(7) % 3)
    assert (images.dtype, source.num_classes, source.class_names) == (np.float32, 5, tuple("abcde"))
    test, _ = data.load_arrays(data.load_source(split="test", path=path, **OPTIONS))
    np.testing.assert_array_equal(test[:, 0, 0, 0], [7, 8, 9])


def test_training_batches_hold_latents_as_they_are(tmp_path):
    source = data.load_source(split="train", path=folder(tmp_path, channels=8), **OPTIONS)
    batch = next(data.train_iterator(source, global_batch_size=7, seed=0))
    assert batch["image"].shape == (7, 2, 2, 8)
    np.testing.assert_array_equal(np.sort(batch["image"][:, 0, 0, 0]), np.arange(7))
    with pytest.raises(ValueError, match="flip is True, but mirrored latents are not those of mirrored images"):
        data.train_iterator(source, global_batch_size=7, seed=0, flip=True)


def test_an_npz_holds_out_every_tenth_row(tmp_path):
    rows = np.arange(25, dtype=np.float32)[:, None, None, None] + np.zeros((1, 2, 2, 4), np.float32)
    np.savez(tmp_path / "some.npz", latents=rows)
    path = str(tmp_path / "some.npz")
    train, test = (data.load_source(split=split, path=path, **OPTIONS) for split in ("train", "test"))
    np.testing.assert_array_equal(data.load_arrays(test)[0][:, 0, 0, 0], [9, 19])
    assert len(train) == 23 and train.num_classes is None
    assert not set(data.load_arrays(train)[0][:, 0, 0, 0]) & {9, 19}


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"image_size": 4}, "image_size is 4, but the latents in .* are of 2x2"),
        (None, {"channels": 3}, "channels is 3, but the latents in .* have 4, neither as many nor twice"),
        ("latents.json", {}, "has no latents.json: it was not written by the command encode, or not wholly"),
        ("a list", {}, "latents.json: holds a list; it must hold a JSON object"),
        ("train/latents-00000.npy", {}, "latents-00000.npy: is no readable .npy file"),
        ("train/labels.npy", {}, r"labels must be integers, one for each of 7 latents, got \[2\]"),
        (None, {"path": "/nowhere"}, "must be a folder of encoded images or an .npz, but there is nothing"),
        (None, {"path": None}, "the source 'latents' needs path"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path, change, options, message):
    path = folder(tmp_path)
    if change == "latents.json":
        (tmp_path / change).unlink()
    elif change == "a list":
        (tmp_path / "latents.json").write_text("[1]")
    elif change == "train/labels.npy":
        np.save(tmp_path / change, np.zeros(2, int))
    elif change:
        (tmp_path / change).write_bytes(b"no array")
    with pytest.raises(ValueError, match=message) as caught:
        data.load_source(split="train", **{"path": path, **OPTIONS, **options})
    assert "\n" not in str(caught.value)
