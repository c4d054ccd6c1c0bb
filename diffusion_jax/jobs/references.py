"""The other side of a run's scores: moments of the data's own images, and rows where a metric compares image by image.

Images are read, decoded and measured batch by batch, so that a million of them need no more memory than a hundred; of
several processes each reads the rows of its own devices.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm

from diffusion_jax import data
from diffusion_jax.jobs.session import Session
from diffusion_jax.metrics import devices, measure, protocols, statistics
from diffusion_jax.metrics.content import ContentHash
from diffusion_jax.metrics.features.extractor import Extractor, weights_sha256
from diffusion_jax.metrics.quantisation import quantised
from diffusion_jax.training.distributed import by_first

# Reference images are 8-bit numbers already; those of latents are rounded as the files are that they stand for.
_LATENT_RULE = "half_up"
_BATCH = 64


def of_images(
    session: Session,
    source: data.Source,
    limit: int | None,
    metrics: tuple[str, ...],
    extractor: Extractor,
    protocol: protocols.Protocol,
    is_cached: bool,
) -> measure.Side:
    """What the metrics need of `limit` evenly spaced images of a source, of all without; latents are decoded.

    With `is_cached` moments are kept among the statistics files, by the content of the images: such a file costs one
    reading of the images, and spares the network. Rows are not kept, so metrics that need them measure anew.

    All processes call this; in all but process 0, which compares, moments that were found in a file are missing.
    """
    count = len(data.spaced(len(source), limit))
    made_by = statistics.identity(extractor, protocol)
    cache = None
    if is_cached and not measure.needs_rows(metrics):
        cache = statistics.cache_path(_content(session, source, limit), made_by)
        found = statistics.from_cache(cache)
        if by_first(lambda: found is not None):
            return measure.Side(None, num_images=count) if found is None else _side(found)
    extraction = measure.extraction_for(
        metrics,
        extractor,
        is_generated=False,
        mesh=session.mesh,
        kept_places=measure.reference_places(count, protocol),
    )
    to_images = _decoder(session)
    with _bar(count, "reference") as bar:
        for batch, present in _read(session, source, limit):
            extraction.add_sharded(to_images(devices.split_rows(session.mesh, batch)), present)
            bar.update(present)
    side = measure.side_of(extraction, protocol)
    if cache is not None and jax.process_index() == 0 and side.features is not None:
        known = statistics.Statistics(side.features, side.spatial, side.num_images, made_by, "")
        statistics.to_cache(cache, known)
    return side


def _side(known: statistics.Statistics) -> measure.Side:
    return measure.Side(known.features, known.spatial, None, None, known.num_images)


def _size(session: Session) -> int:
    # Autoencoders take more memory than the networks that are scored with; the sampler's batch is known to fit.
    wanted = _BATCH if session.decoder is None else session.config.sampling.batch_size
    return devices.rounded_up(wanted, session.mesh)


def _read(session: Session, source: data.Source, limit: int | None) -> Iterator[tuple[np.ndarray, int]]:
    size = _size(session)
    return data.batches(source, size, limit, rows=devices.own_rows(session.mesh, size))


def _content(session: Session, source: data.Source, limit: int | None) -> str:
    """A hash of the images, or of the latents and of what decodes them."""
    size = _size(session)
    rows, content = devices.own_rows(session.mesh, size), ContentHash()
    count = len(data.spaced(len(source), limit))
    with _bar(count, "reference: hash") as bar:
        for start, (batch, present) in zip(range(0, count, size), _read(session, source, limit), strict=True):
            own = rows[rows < present]
            content.add(start + own, batch[own])
            bar.update(present)
    parts = [content.hexdigest(), str(count)]
    if session.decoder is not None:
        parts += [weights_sha256(session.decoder.params), str(session.decoder.space), _LATENT_RULE]
    return hashlib.sha256(":".join(parts).encode()).hexdigest()


def _decoder(session: Session) -> Callable[[jax.Array], jax.Array]:
    """From what the source has to images uint8, split as before: of latents, what the means decode to."""
    decoder, precision = session.decoder, session.config.training.matmul_precision
    if decoder is None:
        return lambda images: images

    @jax.jit
    def decode(params: Any, stored: jax.Array) -> jax.Array:
        with jax.default_matmul_precision(precision):
            return quantised(decoder.apply(params, decoder.of_stored(stored)), _LATENT_RULE)

    return functools.partial(decode, session.images.parameters)


def _bar(count: int, title: str) -> Any:
    return tqdm.tqdm(total=count, desc=title, unit="image", file=sys.stderr, disable=not sys.stderr.isatty())
