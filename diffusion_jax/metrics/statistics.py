"""Statistics files: moments of a set of images, with what they were computed by.

A file of this project is an .npz with mu, sigma (float64), for Inception mu_s and sigma_s, and a manifest as JSON. The
files that others publish say nothing about themselves; `foreign_statistics` tells from their content and name what they
are, and this module refuses to compare two that were made in different ways.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from diffusion_jax import readers
from diffusion_jax.metrics.distances import Float64, Gaussian, gaussian
from diffusion_jax.metrics.features.extractor import Extractor
from diffusion_jax.metrics.protocols import Protocol
from diffusion_jax.version import __version__

FORMAT = "diffusion_jax statistics 1"
# What two sets of moments must agree in; whatever one of them does not know is not compared.
COMPARED = ("extractor", "weights_sha256", "preprocessing", "covariance_divisor", "precision")


class StatisticsError(ValueError):
    """A statistics file that cannot be read, or two that cannot be compared; the message is one line for the user."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Moments of one set of images, and what is known of their origin.

    Attributes:
      features, spatial: of the extractor's features, and of the spatial ones of sFID, where there are any.
      num_images: how many images they are of; None where that is not known.
      made_by: the fields of `COMPARED` that are known, with "protocol", "data", "data_sha256", "settings" and
        "versions" where they are.
      origin: what kind of file it is, for the user.
      rows: features [N, d] themselves, where the file has them.
      has_images: whether the file also has images (ADM's reference batches have 10,000).
    """

    features: Gaussian
    spatial: Gaussian | None
    num_images: int | None
    made_by: Mapping[str, Any]
    origin: str
    rows: np.ndarray | None = None
    has_images: bool = False


def identity(extractor: Extractor, protocol: Protocol) -> dict[str, Any]:
    """What statistics computed here are made by."""
    return {
        "protocol": protocol.name,
        "extractor": extractor.name,
        "weights_sha256": extractor.weights_sha256,
        "preprocessing": protocol.preprocessing,
        "covariance_divisor": protocol.covariance_divisor,
        "precision": extractor.settings.get("precision"),
        "settings": dict(extractor.settings),
    }


def differences(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """The fields that both know and that differ, as "field: one, other"."""
    return [
        f"{field}: {first[field]!r} and {second[field]!r}"
        for field in COMPARED
        if first.get(field) is not None and second.get(field) is not None and first[field] != second[field]
    ]


def check_comparable(first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str]) -> None:
    """Raises StatisticsError, in one line with the fields that differ, unless both were made in one way."""
    if found := differences(first, second):
        raise StatisticsError(
            f"{names[0]} and {names[1]} were measured differently ({'; '.join(found)}); measure both alike, choose the "
            "protocol of the reference, or force it with --force"
        )


def save(path: str | Path, statistics: Statistics) -> None:
    """Writes a statistics file, whole or not at all. Raises StatisticsError if it cannot."""
    path = Path(path)
    arrays: dict[str, Any] = {"mu": statistics.features.mean, "sigma": statistics.features.covariance}
    if statistics.spatial is not None:
        arrays |= {"mu_s": statistics.spatial.mean, "sigma_s": statistics.spatial.covariance}
    manifest = {
        "format": FORMAT,
        "num_images": statistics.num_images,
        **statistics.made_by,
        "versions": {"diffusion_jax": __version__, "jax": jax.__version__, "numpy": np.__version__},
    }
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, manifest=np.array(json.dumps(manifest, sort_keys=True)), **arrays)
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise StatisticsError(f"{path}: cannot be written: {error.strerror}") from error


def load_own(path: str | Path) -> Statistics | None:
    """The content of a file that `save` wrote; None if it is another .npz. Raises StatisticsError if it is damaged."""
    try:
        with readers.Npz(path) as file:
            if "manifest" not in file:
                return None
            manifest = readers.parse_object(str(file["manifest"]), f"{path}: its manifest")
            if manifest.pop("format") != FORMAT:
                raise StatisticsError(f"{path}: written by a newer version of diffusion_jax; update it")
            spatial = gaussian(file["mu_s"], file["sigma_s"], "_s") if "mu_s" in file else None
            count = manifest.pop("num_images")
            return Statistics(gaussian(file["mu"], file["sigma"]), spatial, count, manifest, "diffusion_jax")
    except StatisticsError:
        raise
    except (KeyError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise StatisticsError(f"{path}: is no statistics file, or a damaged one ({readers.reason(error)})") from None


def with_divisor(moments: tuple[Float64, Float64, int], divisor: str) -> Gaussian:
    """(mean, unbiased covariance, N) as a Gaussian whose covariance divides by "N - 1" or "N"."""
    mean, covariance, count = moments
    return Gaussian(mean, covariance if divisor == "N - 1" else covariance * ((count - 1) / count))


def cache_path(data_sha256: str, made_by: Mapping[str, Any]) -> Path:
    """Where statistics of these images, by this extractor and protocol, are kept: a name that follows from content."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    fields = {field: made_by.get(field) for field in (*COMPARED, "settings")}
    key = hashlib.sha256(json.dumps([FORMAT, data_sha256, fields], sort_keys=True).encode()).hexdigest()
    return caches / "diffusion_jax" / "statistics" / f"{key[:40]}.npz"


def from_cache(path: Path) -> Statistics | None:
    """The statistics in a file of the cache; None if there is none that can be read, which is then made anew."""
    with contextlib.suppress(StatisticsError):
        return load_own(path) if path.is_file() else None
    return None


def to_cache(path: Path, statistics: Statistics) -> None:
    """Keeps statistics, unless the disk is full or read-only."""
    with contextlib.suppress(StatisticsError):
        save(path, statistics)
