import json
from typing import Any

import grain
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffusion_jax.data import ArraySource, to_uint8, train_iterator
from diffusion_jax.data.source import CachedSource
from diffusion_jax.data.sources import image_folder


def numbered(count: int) -> ArraySource:
    """Images that say their number in their two middle columns and which side was left; the label is the number too."""
    images = np.zeros((count, 1, 4, 1), np.uint8)
    numbers = np.arange(count)
    images[:, 0, 0, 0] = 255
    images[:, 0, 1, 0] = images[:, 0, 2, 0] = numbers % 256
    return ArraySource(images, numbers)


class Lazy:
    """The same images, as a source that is read one by one and counts what is read."""

    dtype = np.dtype(np.uint8)
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None

    def __init__(self, count):
        self.arrays = numbered(count)
        self.image_shape = self.arrays.image_shape
        self.reads = np.zeros(count, int)

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.arrays[index]


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def labels_of(batches):
    return np.concatenate([batch["condition"]["label"] for batch in batches])


def flips_of(batches):
    return np.concatenate([to_uint8(batch["image"])[:, 0, 3, 0] == 255 for batch in batches])


def assert_same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys() == {"image", "condition"}
        jax.tree.map(np.testing.assert_array_equal, mine, other)


def joined(parts):
    """The batches of several hosts side by side."""
    return [jax.tree.map(lambda *values: np.concatenate(values), *batch) for batch in parts]


def test_batches_have_the_promised_form():
    batch = next(train_iterator(numbered(10), global_batch_size=4, seed=0))
    assert batch["image"].shape == (4, 1, 4, 1)
    assert batch["image"].dtype == np.float32
    assert batch["condition"]["label"].dtype == np.int32
    assert (batch["image"][:, 0, 0] == 1).all()
    assert (batch["image"][:, 0, 3] == -1).all()


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 40), batch=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_every_epoch_holds_every_image_once(count, batch, seed):
    iterator = train_iterator(numbered(count), global_batch_size=batch, seed=seed)
    epochs = labels_of(take(iterator, -(-3 * count // batch)))[: 3 * count].reshape(3, count)
    iterator.close()
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(count))


def test_epochs_and_seeds_are_ordered_differently():
    epochs = {
        seed: labels_of(take(train_iterator(numbered(60), global_batch_size=60, seed=seed), 3)) for seed in (0, 1)
    }
    orders = {tuple(order) for order in np.concatenate([epochs[0], epochs[1]]).reshape(6, 60)}
    assert len(orders) == 6  # with the seed simply added to the epoch, epoch 1 of seed 0 would be epoch 0 of seed 1
    assert tuple(range(60)) not in orders


def test_where_an_image_lands_in_an_epoch_is_uniform():
    labels = labels_of(take(train_iterator(numbered(4), global_batch_size=400, seed=3), 30)).reshape(-1, 4)
    for place in range(4):
        shares = np.bincount(labels[:, place], minlength=4) / len(labels)
        np.testing.assert_allclose(shares, 0.25, atol=0.04)  # five standard deviations


def test_labels_stay_with_their_images():
    for batch in take(train_iterator(numbered(200), global_batch_size=64, seed=1, flip=True), 10):
        pixels = to_uint8(batch["image"])[:, 0, :, 0]
        np.testing.assert_array_equal(pixels[:, 1], batch["condition"]["label"])
        np.testing.assert_array_equal(pixels[:, 2], batch["condition"]["label"])


def test_what_is_known_of_images_is_encoded_by_name():
    """Texts and arrays go along with their images, as they are or as an encoder makes them; the rest is left out."""
    source = numbered(20)
    words = np.array([f"number {i}" for i in range(20)], object)
    points = np.stack([np.arange(20.0), np.zeros(20)], 1).astype(np.float32)
    known = ArraySource(source.images, source.labels, conditions={"words": words, "points": points})
    options: dict[str, Any] = {"global_batch_size": 8, "seed": 1}
    plain = next(train_iterator(known, **options))["condition"]
    assert list(plain["words"]) == [f"number {label}" for label in plain["label"]]
    np.testing.assert_array_equal(plain["points"][:, 0], plain["label"])
    last = {"words": lambda texts: np.array([int(text[7:]) for text in texts])}
    encoded = next(train_iterator(known, **options, encoders=last))["condition"]
    assert encoded.keys() == {"words"}
    np.testing.assert_array_equal(encoded["words"], plain["label"])
    lazy = next(train_iterator(CachedSource(known), **options))["condition"]
    jax.tree.map(np.testing.assert_array_equal, lazy, plain)


@pytest.mark.parametrize("hosts", [2, 4])
@pytest.mark.parametrize("make", [numbered, Lazy])
def test_hosts_side_by_side_are_one_host(hosts, make):
    options: dict[str, Any] = {"global_batch_size": 8, "seed": 5, "flip": True}
    alone = take(train_iterator(numbered(21), **options), 6)
    parts = [
        take(train_iterator(make(21), **options, process_index=host, process_count=hosts), 6) for host in range(hosts)
    ]
    assert_same(joined(zip(*parts, strict=True)), alone)


def test_flips_mirror_half_of_the_images_and_nothing_else():
    options: dict[str, Any] = {"global_batch_size": 100, "seed": 2}
    plain = take(train_iterator(numbered(50), **options), 40)
    flipped = take(train_iterator(numbered(50), **options, flip=True), 40)
    coins = flips_of(flipped)
    assert not flips_of(plain).any()
    assert abs(coins.mean() - 0.5) < 0.04  # five standard deviations of 4,000 coins
    for before, after, coin in zip(plain, flipped, coins.reshape(40, 100), strict=True):
        np.testing.assert_array_equal(after["image"][~coin], before["image"][~coin])
        np.testing.assert_array_equal(after["image"][coin], before["image"][coin][:, :, ::-1])
    epochs = coins.reshape(80, 50)
    assert len({tuple(epoch) for epoch in epochs}) == 80
    other = flips_of(take(train_iterator(numbered(50), **options | {"seed": 3}, flip=True), 40))
    assert 0.45 < (coins == other).mean() < 0.55


def test_flips_belong_to_positions_and_not_to_batches():
    fine = flips_of(take(train_iterator(numbered(7), global_batch_size=3, seed=0, flip=True), 20))
    coarse = flips_of(take(train_iterator(numbered(7), global_batch_size=20, seed=0, flip=True), 3))
    np.testing.assert_array_equal(fine, coarse)


@pytest.mark.parametrize("make", [numbered, Lazy])
def test_a_saved_state_continues_exactly(make):
    options = {"global_batch_size": 8, "seed": 9, "flip": True}
    first = train_iterator(make(30), **options)
    take(first, 5)
    state = json.loads(json.dumps(first.get_state()))
    expected = take(first, 4)

    assert_same(take_from(make, state, options), expected)
    first.set_state(state)  # the same iterator may go back, past what it has prefetched
    assert_same(take(first, 4), expected)
    halves = [take_from(make, state, {**options, "process_index": host, "process_count": 2}) for host in range(2)]
    assert_same(joined(zip(*halves, strict=True)), expected)


def take_from(make, state, options):
    iterator = train_iterator(make(30), **options)
    iterator.set_state(state)
    assert iterator.get_state() == state
    return take(iterator, 4)


def test_the_state_counts_batches_given_and_not_those_prefetched():
    iterator = train_iterator(numbered(30), global_batch_size=8, seed=0)
    assert iterator.get_state()["next_index"] == 0
    iterator.start_prefetch()
    take(iterator, 3)
    assert iterator.get_state()["next_index"] == 3


@pytest.mark.parametrize(
    ("field", "source", "options"),
    [
        ("seed", numbered(30), {"seed": 1}),
        ("global_batch_size", numbered(30), {"global_batch_size": 4}),
        ("num_examples", numbered(31), {}),
    ],
)
def test_a_state_of_another_stream_is_refused(field, source, options):
    defaults: dict[str, Any] = {"global_batch_size": 8, "seed": 0}
    state = train_iterator(numbered(30), **defaults).get_state()
    with pytest.raises(ValueError, match=f"saved with {field}=.*, this run has {field}="):
        train_iterator(source, **defaults | options).set_state(state)


def test_grains_own_checkpoint_handler_takes_it(tmp_path):
    first = train_iterator(numbered(30), global_batch_size=8, seed=0)
    take(first, 3)
    grain.checkpoint.CheckpointHandler().save(tmp_path, item=first)
    second = train_iterator(numbered(30), global_batch_size=8, seed=0)
    grain.checkpoint.CheckpointHandler().restore(tmp_path, item=second)
    assert_same(take(second, 2), take(first, 2))


def test_a_small_source_is_read_once_and_a_large_one_is_not_kept():
    cached, uncached = Lazy(20), Lazy(20)
    take(train_iterator(cached, global_batch_size=10, seed=0), 80)
    take(train_iterator(uncached, global_batch_size=10, seed=0, cache_bytes=20 * 4 - 1), 80)
    assert cached.reads.min() >= 1
    assert cached.reads.max() <= 16  # once for each thread, should all of them meet
    assert uncached.reads.min() >= 40


def test_a_corrupt_image_stops_training_with_its_name(tmp_path):
    for index in range(4):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{index}.png")
    source = image_folder.load(tmp_path, "train", image_size=4)
    (tmp_path / source.files[0]).write_bytes(b"GIF89a")
    with pytest.raises(ValueError, match="cannot read image") as caught:
        next(train_iterator(source, global_batch_size=4, seed=0))
    assert source.files[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size must be at least 1, got 0"),
        ({"process_count": 3}, "global_batch_size 8 is not divisible by the 3 hosts"),
        ({"process_index": 1}, "process_index must be from 0 to process_count - 1, got 1 of 1"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"num_workers": -1}, "num_workers must be at least 0, got -1"),
    ],
)
def test_arguments_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        train_iterator(numbered(5), **{"global_batch_size": 8, "seed": 0} | options)


def test_an_empty_source():
    with pytest.raises(ValueError, match="no images"):
        train_iterator(numbered(0), global_batch_size=8, seed=0)


def test_worker_processes_give_the_same_batches_and_states():
    options = {"global_batch_size": 8, "seed": 4, "flip": True}
    threads = train_iterator(numbered(30), **options)
    workers = train_iterator(numbered(30), **options, num_workers=2)
    assert_same(take(workers, 5), take(threads, 5))
    assert workers.get_state() == threads.get_state()
    workers.close()
