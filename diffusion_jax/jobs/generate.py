"""Draws images in batches of one shape, so that the sampler is compiled once, split over all devices."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from diffusion_jax import data
from diffusion_jax.config import build
from diffusion_jax.jobs.session import Session
from diffusion_jax.training import sharding


class Generator:
    """Image i of a run is a function of (config.seed, i) alone: neither batch size nor devices nor order enter.

    Attributes:
      compile_seconds, sample_seconds, num_images: what was spent and drawn so far.
    """

    def __init__(self, session: Session):
        self._session = session
        self._compiled: dict[int | None, Any] = {}
        self.compile_seconds = self.sample_seconds = 0.0
        self.num_images = 0

    def batches(
        self, num_images: int, trajectory_stride: int | None = None, title: str = "sampling"
    ) -> Iterator[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]:
        """Yields (images uint8 [n, H, W, C], their labels or None, trajectory or None).

        The trajectory is float32 [frames, n, ...], of what the method works on.
        """
        size = self._session.config.sampling.batch_size
        bar = tqdm.tqdm(total=num_images, desc=title, unit="image", file=sys.stderr, disable=not sys.stderr.isatty())
        with bar:
            for start in range(0, num_images, size):
                wanted = min(size, num_images - start)
                images, frames = self.part(start, wanted, trajectory_stride)
                bar.update(wanted)
                yield images, self._session.labels(np.arange(start, start + wanted)), frames

    def part(
        self, start: int, count: int, trajectory_stride: int | None = None, params: Any = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """(images uint8 [count, H, W, C], trajectory or None) from image `start` on.

        count: config.sampling.batch_size at most. params: others than the run's.
        """
        size = self._session.config.sampling.batch_size
        drawn = self._draw(np.arange(start, start + size), trajectory_stride, params)
        self.num_images += count
        # From all processes to all, since each would read its own part alone.
        images, trajectory = multihost_utils.process_allgather(drawn, tiled=True)
        return data.to_uint8(images[:count]), None if trajectory is None else trajectory[:, :count]

    def on_devices(self, num_images: int, params: Any) -> Iterator[tuple[jax.Array, int]]:
        """Yields (images float32 [B, H, W, C] in [-1, 1] that stay on the devices, how many of them are wanted).

        They are split over the mesh as batches are: of several processes each has its part.
        """
        size = self._session.config.sampling.batch_size
        for start in range(0, num_images, size):
            images, _ = self._draw(np.arange(start, start + size), None, params)
            wanted = min(size, num_images - start)
            self.num_images += wanted
            yield images, wanted

    def draw(self, num_images: int, title: str = "sampling") -> tuple[np.ndarray, np.ndarray | None]:
        """The first images of the run, uint8 [N, H, W, C], and the labels that they were asked for."""
        parts = list(self.batches(num_images, title=title))
        labels = [part[1] for part in parts if part[1] is not None]
        return np.concatenate([part[0] for part in parts]), np.concatenate(labels) if labels else None

    def _draw(self, indices: np.ndarray, stride: int | None, params: Any = None) -> tuple[jax.Array, jax.Array | None]:
        session = self._session
        # The same on every host; they are split over the devices inside.
        arguments = (indices.astype(np.int32), session.requests(indices))
        params = session.parameters[1] if params is None else params
        extra = session.given, session.images.parameters
        if stride not in self._compiled:
            begun = time.monotonic()
            split = sharding.batch_sharding(session.mesh)
            frames = NamedSharding(session.mesh, PartitionSpec(None, *split.spec))
            sample = jax.jit(functools.partial(_sample, session, stride), out_shardings=(split, frames))
            self._compiled[stride] = sample.lower(params, *arguments, *extra).compile()
            self.compile_seconds += time.monotonic() - begun
        begun = time.monotonic()
        drawn = jax.block_until_ready(self._compiled[stride](params, *arguments, *extra))
        self.sample_seconds += time.monotonic() - begun
        return drawn


def _sample(
    session: Session,
    stride: int | None,
    params: Any,
    indices: jax.Array,
    condition: Any,
    given: Any,
    decoder_params: Any,
) -> tuple[jax.Array, jax.Array | None]:
    keys = build.image_keys(session.config, indices)
    keys, condition = jax.lax.with_sharding_constraint((keys, condition), sharding.batch_sharding(session.mesh))
    with jax.default_matmul_precision(session.config.training.matmul_precision):
        drawn, trajectory = session.model.draw(params, keys, condition, given, stride)
        images = drawn if session.decoder is None else session.decoder.apply(decoder_params, drawn)
        return images, trajectory
