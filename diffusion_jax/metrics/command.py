"""The work of `./launch/local.sh metrics`: one JSON object on stdout, everything else on stderr."""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import tqdm

from diffusion_jax.metrics import asked_for, features, foreign_statistics, image_sets, measure, protocols, statistics
from diffusion_jax.metrics.extraction import Extraction, Reading, extract
from diffusion_jax.metrics.features.extractor import Extractor
from diffusion_jax.metrics.flags import UsageError, parser
from diffusion_jax.metrics.image_sets import ImageSet, Loader
from diffusion_jax.metrics.metric import Need
from diffusion_jax.metrics.protocols import Protocol
from diffusion_jax.metrics.statistics import Statistics
from diffusion_jax.version import __version__

BAD_INPUT = 2


class BadImagesError(ValueError):
    """Some images cannot be read; they were listed."""


def main(argv: Sequence[str], loaders: Mapping[str, Loader] | None = None) -> int:
    """Runs the command line; `loaders` open sets of images whose names begin with "prefix:". Returns the exit code."""
    try:
        options = parser().parse_args(argv)
        # Libraries that print would spoil the one object that stdout is for.
        with contextlib.redirect_stdout(sys.stderr):
            result = Measurement(options, loaders or {}).run()
    except (ValueError, OSError) as error:
        _say(f"diffusion_jax.metrics: {' '.join(str(error).split())}")
        return BAD_INPUT
    print(json.dumps(result, indent=2))
    return 0


class Measurement:
    """One run of the command."""

    def __init__(self, options: argparse.Namespace, loaders: Mapping[str, Loader]):
        self._options, self._loaders = options, loaders
        self._begun = time.monotonic()
        self._warnings: list[str] = []
        self._described: dict[str, dict[str, Any]] = {}

    def run(self) -> dict[str, Any]:
        """The JSON object. Raises ValueError, one line for the user, for whatever cannot be."""
        options = self._options
        if options.batch_size < 1:
            raise UsageError(f"--batch-size is {options.batch_size}; it must be at least 1")
        if not options.generated and not (options.reference and options.save_statistics):
            raise UsageError("--generated SET is missing (or --reference SET with --save-statistics FILE)")
        name = measure.resolve_features(options.features)
        reference = self._open_reference(name) if options.reference else None
        generated = image_sets.open_images(options.generated, self._loaders) if options.generated else None
        protocol = self._protocol(name, reference)
        metrics = self._metrics(name, reference, generated) if generated is not None else []
        asked = asked_for.read(options, generated) if generated is not None else {}
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = lambda message, *_: self._warn(str(message))  # not with its place in our source
            extractor = features.load(
                name,
                options.weights,
                fast=options.fast,
                preprocessing=protocol.preprocessing if name == protocols.INCEPTION else None,
            )
        made_by = statistics.identity(extractor, protocol)
        forced = self._compare(made_by, reference)

        real = self._measure_reference(reference, metrics, extractor, protocol, made_by) if reference else None
        result: dict[str, Any] = {}
        if generated is not None:
            is_saved = bool(options.save_statistics) and reference is None
            fake = self._measure(generated, "generated", metrics, extractor, protocol, is_saved)
            fake = dataclasses.replace(fake, **asked)
            self._warn_of_counts(fake, real, protocol, extractor)
            result = measure.score(metrics, fake, real, protocol, say=_say, intervals=not options.no_intervals)
            for line in measure.cautions(metrics, fake, real, protocol):
                self._warn(line)
            if is_saved:
                self._save(fake, made_by, generated.sha256(), generated.name)
        return result | {
            "protocol": protocol.record()
            | {
                "extractor": extractor.name,
                "weights_sha256": extractor.weights_sha256,
                "settings": dict(extractor.settings),
                "images": "uint8, as the files have them",
                "mixed": forced,
            },
            **self._described,
            "warnings": self._warnings,
            "versions": {"diffusion_jax": __version__, "jax": jax.__version__},
            "device": jax.devices()[0].device_kind,
            "seconds": round(time.monotonic() - self._begun, 3),
        }

    def _open_reference(self, features_name: str) -> Statistics | ImageSet:
        name = self._options.reference
        if name.lower().endswith(foreign_statistics.EXTENSIONS):
            found = foreign_statistics.load(name, features_name)
            if found is not None:
                return found
        return image_sets.open_images(name, self._loaders)

    def _protocol(self, name: str, reference: Statistics | ImageSet | None) -> Protocol:
        asked = self._options.protocol
        if name != protocols.INCEPTION:
            if asked:
                raise UsageError(f"--protocol {asked} is one of Inception's features, but --features is {name}")
            return protocols.of_features(name)
        if asked:
            return protocols.get(asked)
        implied = reference.made_by.get("protocol") if isinstance(reference, Statistics) else None
        return protocols.PROTOCOLS.get(str(implied)) or protocols.get(protocols.DEFAULT)

    def _metrics(self, name: str, reference: Statistics | ImageSet | None, generated: ImageSet) -> list[str]:
        if self._options.metrics:
            wanted = [metric.strip() for metric in self._options.metrics.split(",") if metric.strip()]
        elif reference is None:
            alone = measure.DEFAULT_WITHOUT_REFERENCE
            wanted = [metric for metric in alone if measure.METRICS[metric].refuses(name) is None]
        elif isinstance(reference, Statistics) and reference.rows is None and not reference.has_images:
            wanted = [metric for metric in measure.DEFAULT_METRICS if not measure.needs_rows([metric])]
        else:
            wanted = list(measure.DEFAULT_METRICS)
        measure.check_metrics(wanted, name)
        if isinstance(reference, Statistics) and reference.rows is None and not reference.has_images:
            measure.refuse_moments(wanted)
        if reference is None and (needing := [metric for metric in wanted if measure.METRICS[metric].of_reference]):
            raise UsageError(f"--reference SET is missing, which metric {needing[0]!r} compares with")
        if not wanted and not self._options.save_statistics:
            raise UsageError("--reference SET is missing: without one only --metrics is can be computed")
        measure.refuse_missing(wanted, asked_for.missing(self._options, reference, generated))
        return wanted

    def _compare(self, made_by: Mapping[str, Any], reference: Statistics | ImageSet | None) -> list[str]:
        """What differs between the reference's making and this run's; refused unless forced."""
        if not isinstance(reference, Statistics):
            return []
        if not reference.made_by:
            self._warn(f"{self._options.reference} does not say by which protocol it was made; it is taken as this one")
        found = statistics.differences(reference.made_by, made_by)
        if not self._options.force:
            statistics.check_comparable(reference.made_by, made_by, (self._options.reference, "this run"))
        elif found:
            self._warn(f"mixed by --force: {'; '.join(found)}")
        return found

    def _measure_reference(
        self,
        reference: Statistics | ImageSet,
        metrics: Sequence[str],
        extractor: Extractor,
        protocol: Protocol,
        made_by: Mapping[str, Any],
    ) -> measure.Side:
        options = self._options
        if isinstance(reference, Statistics):
            rows = reference.rows
            if reference.has_images and measure.needs_rows(metrics):
                images = image_sets.open_images(options.reference, self._loaders)
                rows = self._measure(images, "reference", metrics, extractor, protocol).rows
            self._described["reference"] = self._described.get("reference", {}) | {
                "name": options.reference,
                "statistics": reference.origin,
                "statistics_of": reference.num_images,
                "made_by": dict(reference.made_by),
            }
            side = measure.Side(reference.features, reference.spatial, rows, None, reference.num_images)
            if options.save_statistics:
                self._save(side, reference.made_by, reference.made_by.get("data_sha256"), options.reference)
            return side
        digest = reference.sha256()
        cache = statistics.cache_path(digest, made_by)
        is_enough = not options.no_cache and not measure.needs_rows(metrics)
        cached = statistics.from_cache(cache) if is_enough else None
        if cached is not None:
            _say(f"--reference: the moments of {cached.num_images} images are in {cache}")
            self._described["reference"] = {
                "name": reference.name,
                "num_images": cached.num_images,
                "cached": str(cache),
            }
            side = measure.Side(cached.features, cached.spatial, None, None, cached.num_images)
        else:
            side = self._measure(reference, "reference", metrics, extractor, protocol)
            if not options.no_cache:
                statistics.to_cache(cache, _statistics(side, made_by, digest, reference.name))
        if options.save_statistics:
            self._save(side, made_by, digest, reference.name)
        return side

    def _measure(
        self,
        images: ImageSet,
        role: str,
        metrics: Sequence[str],
        extractor: Extractor,
        protocol: Protocol,
        is_saved: bool = False,
    ) -> measure.Side:
        options = self._options
        is_generated = role == "generated"
        is_whole = is_generated or measure.needing(Need.PAIRS, metrics) is not None
        extraction = measure.extraction_for(
            metrics,
            extractor,
            is_generated=is_generated,
            intervals=not options.no_intervals,
            is_saved=is_saved,
            kept_places=None if is_whole else measure.reference_places(len(images), protocol),
        )
        title = f"--{role}"
        # In a file or a pipe a line now and then is enough.
        interval = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm.tqdm(
            total=len(images), desc=title, unit="image", file=sys.stderr, mininterval=interval, dynamic_ncols=True
        ) as bar:
            reading = extract(
                images, extraction, batch_size=options.batch_size, skip_bad=options.skip_bad, progress=bar.update
            )
        self._check_reading(images, title, reading, extraction)
        self._described[role] = {
            "name": images.name,
            "num_images": extraction.count,
            "sizes": {f"{width}x{height}": count for (height, width), count in sorted(reading.sizes.items())},
            "lossy_files": images.lossy,
            "skipped": [name for name, _ in reading.unreadable],
        }
        return measure.side_of(extraction, protocol)

    def _check_reading(self, images: ImageSet, title: str, reading: Reading, extraction: Extraction) -> None:
        for name, reason in reading.unreadable:
            _say(f"cannot read {name}: {reason}")
        if reading.unreadable and not self._options.skip_bad:
            raise BadImagesError(
                f"{title} {images.name}: {len(reading.unreadable)} of {len(images)} images cannot be read, listed "
                "above; --skip-bad leaves them out"
            )
        if reading.unreadable:
            self._warn(f"{title}: {len(reading.unreadable)} unreadable images were left out")
        if not extraction.count:
            raise ValueError(f"{title} {images.name}: none of its images can be read")
        if images.lossy:
            self._warn(
                f"{title}: {images.lossy} of {len(images)} files are JPEG or WebP, whose losses move every score; "
                "compare images that were stored alike"
            )
        if len(reading.sizes) > 1:
            common = ", ".join(f"{w}x{h} ({count})" for (h, w), count in reading.sizes.most_common(4))
            self._warn(f"{title}: images of {len(reading.sizes)} sizes are mixed: {common}")

    def _warn_of_counts(
        self, fake: measure.Side, real: measure.Side | None, protocol: Protocol, extractor: Extractor
    ) -> None:
        for title, side in (("--generated", fake), ("--reference", real)):
            if side is not None and side.num_images is not None and side.num_images <= extractor.feature_dim:
                self._warn(
                    f"{title}: {side.num_images} images are too few for a covariance of {extractor.feature_dim} "
                    "features; the Frechet distance is biased upwards"
                )
        if protocol.name in protocols.PROTOCOLS and fake.num_images != protocol.samples:
            self._warn(
                f"--generated: {fake.num_images} images, but published numbers of protocol {protocol.name} are of "
                f"{protocol.samples}; the Frechet distance falls as images become more"
            )
        sizes = [set(self._described.get(role, {}).get("sizes", {})) for role in ("generated", "reference")]
        if all(len(found) == 1 for found in sizes) and sizes[0] != sizes[1]:
            self._warn(f"--generated has images of {min(sizes[0])}, --reference of {min(sizes[1])}")

    def _save(self, side: measure.Side, made_by: Mapping[str, Any], digest: str | None, name: str) -> None:
        statistics.save(self._options.save_statistics, _statistics(side, made_by, digest, name))
        _say(f"statistics are in {self._options.save_statistics}")

    def _warn(self, message: str) -> None:
        _say(f"warning: {message}")
        self._warnings.append(message)


def _statistics(side: measure.Side, made_by: Mapping[str, Any], digest: str | None, name: str) -> Statistics:
    assert side.features is not None
    known = dict(made_by) | {"data": name, "data_sha256": digest}
    return Statistics(side.features, side.spatial, side.num_images, known, "diffusion_jax")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
