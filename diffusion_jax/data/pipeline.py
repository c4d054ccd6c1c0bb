"""Training batches: batch k is a function of the source, the seed and k, whatever the number of hosts or workers.

The stream of examples is global: position p lies in epoch p // N, every epoch is a new permutation of the N images,
and batch k of all hosts together holds positions k B to (k + 1) B - 1. Host h of P takes the h-th of P equal parts of
each batch, so the hosts' parts laid side by side are the batch of a single host. An epoch may end inside a batch.

Grain supplies random access with prefetching threads or processes. The order and the flips are computed here for a
whole batch at a time, because Grain's per-element shuffle costs 20 to 30 microseconds an element in Python (several
milliseconds a batch, where a training step on small images takes ten), and because its epoch e under seed s is its
epoch 0 under seed s + e, so that neighbouring seeds would repeat each other's data.
"""

from __future__ import annotations

import functools
import operator
import threading
from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np
from absl import flags

from diffusion_jax.data.images import to_float
from diffusion_jax.data.source import ArraySource, CachedSource, Source, gather, num_bytes, num_decode_threads

# From the values of a condition [b, ...] to a tree of arrays [b, ...].
Encoder = Callable[[np.ndarray], Any]
# Independent random streams under one seed.
_ORDER_STREAM, _FLIP_STREAM = 0, 1
# Batches waiting for the training step may take this much memory, but there are always two.
_PREFETCH_BYTES = 2**30


def train_iterator(
    source: Source,
    *,
    global_batch_size: int,
    seed: int,
    flip: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    num_workers: int = 0,
    cache_bytes: int = 2**30,
    encoders: Mapping[str, Encoder] | None = None,
) -> TrainIterator:
    """Endless shuffled training batches.

    A source smaller than the batch is repeated within it. Decoding runs ahead of the training step in threads, one a
    core; a source that fits in `cache_bytes` is decoded once and then served from memory.

    Args:
        source: where the images come from.
        global_batch_size: B, the batch over all hosts.
        seed: at least 0; with the position of an example it decides which image it is and whether it is flipped.
        flip: mirror each example left to right with probability 1/2.
        process_index: this host, from 0.
        process_count: number of hosts; divides B.
        num_workers: processes that decode instead of threads, for sources that keep more than one core busy. They
            start slowly (about 10 s), do not share a cache, and need the `if __name__ == "__main__"` guard in scripts.
        cache_bytes: keep decoded images in memory if all of them fit in this many bytes (on each host); 0 never does.
        encoders: name of a condition -> what makes arrays [b, ...] of its values; the others are left out. None takes
            all as they are.

    Returns:
        An iterator over {"image": float32 [b, H, W, C], in [-1, 1] unless they are latents, "condition": {name: [b,
        ...]}} with b = B / process_count.

    Raises:
        ValueError: an argument out of its range, or an empty source. The iterator raises ValueError for an image
            that cannot be read.
    """
    _check(source, global_batch_size, seed, process_index, process_count, num_workers)
    if flip and source.dtype != np.uint8:
        raise ValueError("flip is True, but mirrored latents are not those of mirrored images: encode both with --flip")
    if not isinstance(source, ArraySource) and num_workers == 0 and num_bytes(source) <= cache_bytes:
        source = CachedSource(source)
    batches = Batches(source, global_batch_size, seed, flip, process_index, process_count, encoders)
    return TrainIterator(batches, num_workers)


class Batches:
    """The endless sequence of this host's batches with random access; arguments as in `train_iterator`."""

    def __init__(
        self,
        source: Source,
        global_batch_size: int,
        seed: int,
        flip: bool,
        process_index: int,
        process_count: int,
        encoders: Mapping[str, Encoder] | None = None,
    ):
        self.source = source
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.flip = flip
        self.local_batch_size = global_batch_size // process_count
        self._encoders = encoders
        self._offset = process_index * self.local_batch_size

    def __len__(self) -> int:
        return np.iinfo(np.int64).max // self.global_batch_size

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Batch `index`: {"image": float32 [b, H, W, C], "condition": {name: [b, ...]}}."""
        start = operator.index(index) * self.global_batch_size + self._offset
        images, conditions = gather(self.source, self._source_indices(start))
        if self._encoders is not None:
            conditions = {
                name: encode(conditions[name]) for name, encode in self._encoders.items() if name in conditions
            }
        if self.flip:
            mirrored = self._coins(start)
            images[mirrored] = images[mirrored, :, ::-1]
        return {"image": to_float(images) if self.source.dtype == np.uint8 else images, "condition": conditions}

    def _source_indices(self, start: int) -> np.ndarray:
        """Which image stands at each of the positions from `start` on, int64 [b]."""
        positions = start + np.arange(self.local_batch_size)
        epochs, within = np.divmod(positions, len(self.source))
        indices = np.empty(self.local_batch_size, np.int64)
        for epoch in range(epochs[0], epochs[-1] + 1):
            here = epochs == epoch
            indices[here] = _epoch_order(len(self.source), self.seed, epoch)[within[here]]
        return indices

    def _coins(self, start: int) -> np.ndarray:
        """A fair coin for each of the positions from `start` on, bool [b]."""
        key = np.random.SeedSequence(self.seed, spawn_key=(_FLIP_STREAM,)).generate_state(2, np.uint64)
        # Philox is a function of key and counter; position p is counter p, of whose four words the first is used.
        words = np.random.Philox(key=key, counter=start).random_raw(4 * self.local_batch_size)[::4]
        return (words >> np.uint64(63)).astype(bool)


class TrainIterator(grain.DatasetIterator):
    """Iterates over `Batches` ahead of the caller. Its state is the number of the next batch, in JSON types.

    The state fits any number of hosts, threads and workers. It records what else the order of the data depends on and
    refuses to continue another stream: `set_state` raises ValueError if the seed, the batch size or the number of
    images differ.
    """

    def __init__(self, batches: Batches, num_workers: int = 0):
        super().__init__()
        self._batches = batches
        self._num_workers = num_workers
        self._next_index = 0
        self._ahead: grain.DatasetIterator | None = None

    def __next__(self) -> dict[str, Any]:
        batch = next(self._running())
        self._next_index += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        return {"next_index": self._next_index, **self._stream()}

    def set_state(self, state: dict[str, Any]) -> None:
        for field, here in self._stream().items():
            if state[field] != here:
                raise ValueError(f"the data state was saved with {field}={state[field]}, this run has {field}={here}")
        self._stop()
        self._next_index = int(state["next_index"])

    def start_prefetch(self) -> None:
        """Starts to decode before the first batch is asked for."""
        self._running().start_prefetch()

    def close(self) -> None:
        """Stops threads and worker processes."""
        self._stop()
        super().close()

    def _stream(self) -> dict[str, int]:
        batches = self._batches
        return {
            "seed": batches.seed,
            "global_batch_size": batches.global_batch_size,
            "num_examples": len(batches.source),
        }

    def _running(self) -> grain.DatasetIterator:
        if self._ahead is None:
            self._ahead = self._start()
        return self._ahead

    def _start(self) -> grain.DatasetIterator:
        # Starting anew at a batch, rather than moving a running iterator, keeps the state free of worker counts.
        dataset = grain.MapDataset.source(self._batches)[self._next_index :]
        in_memory = isinstance(self._batches.source, ArraySource)
        threads = 1 if in_memory or self._num_workers else num_decode_threads()
        batch_bytes = 4 * self._batches.local_batch_size * int(np.prod(self._batches.source.image_shape))
        buffered = max(2, min(2 * threads, _PREFETCH_BYTES // batch_bytes))
        options = grain.ReadOptions(num_threads=min(threads, buffered), prefetch_buffer_size=buffered)
        ahead = dataset.to_iter_dataset(options)
        if self._num_workers:
            _parse_flags()
            ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._num_workers))
        return iter(ahead)

    def _stop(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


_order_lock = threading.Lock()


def _epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch [num_examples]."""
    with _order_lock:  # or every prefetching thread would sort at the start of an epoch
        return _sorted_keys(num_examples, seed, epoch)


@functools.lru_cache(maxsize=4)
def _sorted_keys(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    # Sorting random keys rather than Generator.permutation: NumPy promises that raw streams never change.
    bits = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(_ORDER_STREAM, epoch)))
    return np.argsort(bits.random_raw(num_examples), kind="stable")


def _parse_flags() -> None:
    """Grain's worker processes read absl flags, which a program without absl.app never parsed: take the defaults."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _check(
    source: Source, global_batch_size: int, seed: int, process_index: int, process_count: int, num_workers: int
) -> None:
    if len(source) == 0:
        raise ValueError("the data source has no images")
    if global_batch_size < 1:
        raise ValueError(f"global_batch_size must be at least 1, got {global_batch_size}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    if process_count < 1 or not 0 <= process_index < process_count:
        raise ValueError(f"process_index must be from 0 to process_count - 1, got {process_index} of {process_count}")
    if global_batch_size % process_count:
        raise ValueError(f"global_batch_size {global_batch_size} is not divisible by the {process_count} hosts")
    if num_workers < 0:
        raise ValueError(f"num_workers must be at least 0, got {num_workers}")
