"""From images to features and their moments, on all devices, without the images touching a disk."""

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax import batching
from diffusion_jax.metrics import devices, streaming
from diffusion_jax.metrics.features.extractor import Apply, Extractor, Fit
from diffusion_jax.metrics.image_sets import Item

BATCH_SIZE = 64
# Sizes of images for which a program is compiled.
OWN_PROGRAMS = 2


class Extraction:
    """Runs an extractor over batches and gathers moments of some of its outputs, and rows of some.

    Every batch is split over the devices of the mesh; each device adds to its own moments, which `moments` merges, over
    hosts too. Rows are kept on the host in the order of `indices` and serve the distances that need them; where the
    mesh is of several processes, each of them is sent all rows.

    Args:
      extractor: see there.
      mesh: all of whose devices work on parts of a batch; None for one over the devices of this process.
      moments_of, keep: names of outputs of the extractor.
      kept_places: bool [N], by place in the order: the images whose rows are kept; None keeps all.
    """

    def __init__(
        self,
        extractor: Extractor,
        mesh: Mesh | None = None,
        moments_of: Iterable[str] = ("features",),
        keep: Iterable[str] = (),
        kept_places: np.ndarray | None = None,
    ):
        self.mesh = local_mesh() if mesh is None else mesh
        self._extractor = extractor
        self.moments_of, self.keep = tuple(moments_of), tuple(keep)
        self._shards: dict[str, streaming.Moments] = {}
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in self.keep}
        self._kept_places = kept_places
        self._kept: list[np.ndarray] = []
        self._count = 0
        self.split, whole = NamedSharding(self.mesh, P(self.mesh.axis_names)), NamedSharding(self.mesh, P())
        self._params = devices.on_every_device(self.mesh, extractor.params)
        self._step = functools.partial(_step, moments_of=self.moments_of, keep=self.keep, split=self.split, whole=whole)

    def add(self, images: np.ndarray | jax.Array, indices: np.ndarray | None = None, size: int | None = None) -> None:
        """Adds uint8 images [n, H, W, C] with their places in the order (by default the next ones).

        float32 ones have been through the extractor's `fit`. Every process of the mesh gives the same. Arrays of the
        host are filled up to `size` images, or to what the devices can share, so that few shapes compile.
        """
        count = len(images)
        size = devices.rounded_up(max(count, size or 0), self.mesh)
        filled = batching.filled(np.asarray(images), size)
        batch, mask = (devices.split_rows(self.mesh, array) for array in (filled, np.arange(size) < count))
        self._add(batch, mask, np.arange(count) + self.count if indices is None else np.asarray(indices))

    def add_sharded(self, images: jax.Array, count: int) -> None:
        """Adds the first `count` of uint8 images [B, H, W, C] that lie on the mesh, on every host alike."""
        mask = devices.split_rows(self.mesh, np.arange(len(images)) < count)
        self._add(images, mask, np.arange(count) + self.count)

    @property
    def fit(self) -> Fit | None:
        """The extractor's."""
        return self._extractor.fit

    @property
    def count(self) -> int:
        """Images added so far."""
        return self._count

    def moments(self, name: str = "features") -> tuple[streaming.Float64, streaming.Float64, int]:
        """(mean, unbiased covariance, count) of one of `moments_of`; raises ValueError for fewer than 2 images."""
        if name not in self._shards:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count}")
        return streaming.finalize(streaming.collect(self._shards[name], self.mesh))

    def rows(self, name: str = "features") -> np.ndarray:
        """Rows [N, d] float32 of an output in `keep`, in the order of the indices."""
        order = np.argsort(np.concatenate(self._kept), kind="stable")
        return np.concatenate(self._rows[name])[order]

    def _add(self, batch: jax.Array, mask: jax.Array, indices: np.ndarray) -> None:
        is_fitted = batch.dtype == np.float32 and self._extractor.apply_fitted is not None
        apply: Any = self._extractor.apply_fitted if is_fitted else self._extractor.apply
        if not self._shards:
            outputs = jax.eval_shape(apply, self._params, _three_channels(batch))
            self._shards = {
                name: streaming.empty_shards(outputs[name].shape[-1], self.mesh) for name in self.moments_of
            }
        self._shards, kept = self._step(self._params, self._shards, batch, mask, apply=apply)
        self._count += len(indices)
        is_kept = slice(None) if self._kept_places is None else self._kept_places[indices]
        self._kept.append(indices[is_kept])
        for name, rows in kept.items():
            self._rows[name].append(np.asarray(rows)[: len(indices)][is_kept])


@functools.partial(
    jax.jit, static_argnames=("apply", "moments_of", "keep", "split", "whole"), donate_argnames=("shards",)
)
def _step(
    params: Any,
    shards: dict[str, streaming.Moments],
    images: jax.Array,
    mask: jax.Array,
    *,
    apply: Apply,
    moments_of: tuple[str, ...],
    keep: tuple[str, ...],
    split: NamedSharding,
    whole: NamedSharding,
) -> tuple[dict[str, streaming.Moments], dict[str, jax.Array]]:
    outputs = apply(params, _three_channels(images))
    added = {name: streaming.update_shards(shards[name], outputs[name], mask) for name in moments_of}
    kept = {name: outputs[name] for name in keep}
    return jax.lax.with_sharding_constraint(added, split), jax.lax.with_sharding_constraint(kept, whole)


class Reading(NamedTuple):
    """What was found out while reading a set: images of each (height, width), and the images that cannot be read."""

    sizes: Counter[tuple[int, int]]
    unreadable: list[tuple[str, str]]


def extract(
    items: Iterable[Item],
    extraction: Extraction,
    *,
    batch_size: int = BATCH_SIZE,
    skip_bad: bool = False,
    progress: Callable[[int], Any] = lambda count: None,
) -> Reading:
    """Adds all images of a set; those of one size go through the network together, whatever lies between them.

    Each of the first sizes has a program of its own; images of further ones are brought to the network's size on the
    host, where the extractor can say how, since a program a size takes longer to compile than to run.

    Unreadable images are collected. Unless `skip_bad`, the first of them ends the extraction, and the rest of the set
    is only read, to find the others.
    """
    sizes: Counter[tuple[int, int]] = Counter()
    unreadable: list[tuple[str, str]] = []

    def readable() -> Iterator[np.ndarray]:
        for item in items:
            progress(1)
            if isinstance(item.image, str):
                unreadable.append((item.name, item.image))
            else:
                sizes[item.image.shape[:2]] += 1
                if skip_bad or not unreadable:
                    yield item.image

    for indices, images in batches_by_size(readable(), batch_size, extraction.fit):
        if skip_bad or not unreadable:
            extraction.add(images, indices, batch_size)
    return Reading(sizes, unreadable)


def batches_by_size(
    images: Iterable[np.ndarray], batch_size: int, fit: Fit | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices [n], images [n, H, W, C]) of up to `batch_size` images of one shape.

    fit: what images of further shapes than OWN_PROGRAMS become, float32 of one size; None leaves them as they are.
    """
    pending: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = {}
    own: set[tuple[int, ...]] = set()
    for index, image in enumerate(images):
        if image.shape not in own:
            if fit is None or len(own) < OWN_PROGRAMS:
                own.add(image.shape)
            else:
                image = fit(np.repeat(image[None], 3 // image.shape[-1], axis=-1))[0]
        group = pending.setdefault(image.shape, [])
        group.append((index, image))
        if len(group) == batch_size:
            yield _stacked(pending.pop(image.shape))
    for group in pending.values():
        yield _stacked(group)


@functools.cache
def local_mesh() -> Mesh:
    """The devices of this process along one axis."""
    own = jax.local_devices()
    return jax.make_mesh((len(own),), ("data",), axis_types=(AxisType.Auto,), devices=own)


def _stacked(group: list[tuple[int, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    indices, images = zip(*group, strict=True)
    return np.array(indices), np.stack(images)


def _three_channels(images: jax.Array) -> jax.Array:
    return jnp.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
