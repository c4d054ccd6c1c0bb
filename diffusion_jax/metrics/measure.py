"""Which outputs a metric needs, what its numbers are called, and the numbers themselves."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from diffusion_jax.metrics import distances, features, kernels, neighbours, uncertainty
from diffusion_jax.metrics.clip import clip_mmd
from diffusion_jax.metrics.distances import Gaussian
from diffusion_jax.metrics.extraction import Extraction
from diffusion_jax.metrics.features.extractor import Extractor
from diffusion_jax.metrics.protocols import CLIP, DINOV2, INCEPTION, Protocol
from diffusion_jax.metrics.statistics import with_divisor

FEATURES, SPATIAL, LOGITS = "features", "spatial", "logits_unbiased"
# Groups of the jackknife.
GROUPS = 10
# metric -> what it is, for --help
METRICS = {
    "fid": "Frechet distance, with standard error and 95 % interval",
    "sfid": "Frechet distance of spatial features (Inception only)",
    "fid-infinity": "Frechet distance extrapolated to infinitely many generated images",
    "is": "Inception Score (Inception only; needs no reference)",
    "kid": "kernel distance: mean and deviation over subsets, and standard error of all",
    "prc": "precision and recall",
    "dc": "density and coverage",
    "cmmd": "maximum mean discrepancy of CLIP embeddings (CLIP only)",
}
DEFAULT_METRICS: tuple[str, ...] = ("fid", "kid", "prc")
# The beginnings of the names of numbers that are better when higher; all others are distances.
_HIGHER = ("inception_score", "precision", "recall", "density", "coverage")
# metrics that compare image with image, which moments alone do not allow
_NEED_REFERENCE_ROWS = ("kid", "prc", "dc", "cmmd")


@dataclasses.dataclass(frozen=True)
class Side:
    """One measured set: moments where they are known, rows where images were measured.

    Attributes:
      features, spatial: moments.
      rows, logits: features [N, d] and logits without bias [N, 1008].
      num_images: None for statistics that do not say.
    """

    features: Gaussian | None
    spatial: Gaussian | None = None
    rows: np.ndarray | None = None
    logits: np.ndarray | None = None
    num_images: int | None = None


def resolve_features(name: str) -> str:
    """The full name of an extractor from its beginning, such as digits or inception; ValueError if none or several."""
    found = [known for known in features.NAMES if known == name] or [
        known for known in features.NAMES if known.startswith(name)
    ]
    if len(found) != 1:
        raise ValueError(f"features {name!r} is unknown; it can be {', '.join(found or features.NAMES)}")
    return found[0]


def check_metrics(metrics: Iterable[str], extractor: str) -> None:
    """Raises ValueError for a metric that does not exist or that these features do not have."""
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"metric {metric!r} is unknown; it can be {', '.join(METRICS)}")
        if metric in ("sfid", "is") and extractor != INCEPTION:
            raise ValueError(f"metric {metric!r} needs Inception's features, not those of {extractor}")
        if metric == "cmmd" and not extractor.startswith("clip"):
            raise ValueError(f"metric 'cmmd' needs CLIP's features (--features clip-vitl14-336), not {extractor}")


def is_higher_better(name: str) -> bool:
    """Whether a number of `score` is better when it is higher."""
    return name.startswith(_HIGHER)


def needs_rows(metrics: Iterable[str]) -> bool:
    """Whether one of the metrics needs the reference's images and not only their moments."""
    return bool(set(metrics) & set(_NEED_REFERENCE_ROWS))


def extraction_for(
    metrics: Iterable[str],
    extractor: Extractor,
    *,
    is_generated: bool,
    intervals: bool = True,
    mesh: Mesh | None = None,
    kept_places: np.ndarray | None = None,
) -> Extraction:
    """The extraction that gathers what these metrics need of one side; without intervals a FID needs moments alone.

    kept_places: the images whose rows are kept, where rows are needed at all; None for all.
    """
    metrics = set(metrics)
    rows = needs_rows(metrics) or (is_generated and ("fid-infinity" in metrics or (intervals and "fid" in metrics)))
    keep = ([FEATURES] if rows else []) + ([LOGITS] if is_generated and "is" in metrics else [])
    spatial = [SPATIAL] if extractor.name == INCEPTION and (not is_generated or "sfid" in metrics) else []
    return Extraction(extractor, mesh, moments_of=[FEATURES, *spatial], keep=keep, kept_places=kept_places)


def refuse_moments(metrics: Iterable[str]) -> None:
    """Raises ValueError for a metric that needs images, for a reference that has moments alone."""
    for metric in metrics:
        if metric in _NEED_REFERENCE_ROWS:
            raise ValueError(
                f"metric {metric!r} compares image with image: --reference must hold images, and it holds moments; "
                "metric 'fid' needs no more"
            )


def reference_places(count: int, protocol: Protocol) -> np.ndarray | None:
    """Which of `count` reference images are compared image by image, bool [count]; None for all of them."""
    most = protocol.reference_rows
    if count <= most:
        return None
    places = np.zeros(count, bool)
    places[np.arange(most) * count // most] = True
    return places


def side_of(extraction: Extraction, protocol: Protocol) -> Side:
    """What an extraction gathered. Raises ValueError for fewer than two images."""
    divisor = protocol.covariance_divisor
    spatial = with_divisor(extraction.moments(SPATIAL), divisor) if SPATIAL in extraction.moments_of else None
    return Side(
        with_divisor(extraction.moments(FEATURES), divisor),
        spatial,
        extraction.rows(FEATURES) if FEATURES in extraction.keep else None,
        extraction.rows(LOGITS) if LOGITS in extraction.keep else None,
        extraction.count,
    )


def score(
    metrics: Iterable[str],
    generated: Side,
    reference: Side | None,
    protocol: Protocol,
    *,
    say: Callable[[str], Any] = lambda message: None,
    intervals: bool = True,
) -> dict[str, Any]:
    """The numbers of each metric, under names that say whose features they are of.

    Raises ValueError where a side lacks what a metric needs.
    """
    names = Names(protocol.extractor)
    result: dict[str, Any] = {}
    for metric in metrics:
        say(METRICS[metric].split(",")[0].split(":")[0])
        if metric == "is":
            result |= _inception_score(generated, protocol)
            continue
        if reference is None:
            raise ValueError(f"metric {metric!r} compares with a reference: give --reference")
        if metric in _NEED_REFERENCE_ROWS:
            if generated.rows is None or reference.rows is None:
                raise ValueError(f"metric {metric!r} compares image with image: --reference must hold images")
            result |= _by_image(metric, generated.rows, reference.rows, protocol, names, intervals)
        elif metric == "sfid":
            if generated.spatial is None or reference.spatial is None:
                raise ValueError("metric 'sfid' needs mu_s and sigma_s, which --reference lacks")
            result["sfid"] = generated.spatial.distance(reference.spatial)
        else:
            result |= _frechet(metric, generated, reference, protocol, names, intervals)
    return result


@dataclasses.dataclass(frozen=True)
class Names:
    """What a formula is called of these features; FID, FD-DINOv2 and CMMD are names of one network each."""

    extractor: str

    @property
    def frechet(self) -> str:
        if self.extractor == INCEPTION:
            return "fid"
        if self.extractor == DINOV2:
            return "fd_dinov2"
        return f"frechet_distance_{self.slug}"

    @property
    def kernel(self) -> str:
        return "kid" if self.extractor == INCEPTION else f"kernel_distance_{self.slug}"

    @property
    def cmmd(self) -> str:
        return "cmmd" if self.extractor == CLIP else f"cmmd_{self.slug}"

    @property
    def slug(self) -> str:
        return self.extractor.replace("-", "_")

    def main(self, metric: str) -> str:
        """The number that stands for a metric: its key in the result of `score`."""
        keys = {
            "fid": self.frechet,
            "fid-infinity": f"{self.frechet}_infinity",
            "is": "inception_score",
            "kid": self.kernel,
            "prc": self.plain("precision"),
            "dc": self.plain("coverage"),
            "cmmd": self.cmmd,
        }
        return keys.get(metric, metric)

    def plain(self, name: str) -> str:
        """precision, recall, density, coverage"""
        return name if self.extractor == INCEPTION else f"{name}_{self.slug}"


def _frechet(
    metric: str, generated: Side, reference: Side, protocol: Protocol, names: Names, intervals: bool
) -> dict[str, Any]:
    assert generated.features is not None
    if reference.features is None:
        raise ValueError("metric 'fid' needs the reference's moments")
    if len(generated.features.mean) != len(reference.features.mean):
        raise ValueError(
            f"--reference has {len(reference.features.mean)} features and --generated "
            f"{len(generated.features.mean)}: they are of different networks"
        )
    if metric == "fid-infinity":
        assert generated.rows is not None
        value = uncertainty.frechet_infinity(generated.rows, reference.features)
        return {f"{names.frechet}_infinity": value}
    result: dict[str, Any] = {names.frechet: generated.features.distance(reference.features)}
    if intervals and generated.rows is not None and len(generated.rows) >= 2 * GROUPS:
        interval = uncertainty.frechet_interval(uncertainty.parts(generated.rows, GROUPS), reference.features)
        result[f"{names.frechet}_standard_error"] = interval.standard_error
        result[f"{names.frechet}_interval_95"] = [interval.low, interval.high]
    return result


def _inception_score(generated: Side, protocol: Protocol) -> dict[str, Any]:
    assert generated.logits is not None
    logits = generated.logits
    if protocol.score_shuffle_seed is not None:
        logits = logits[np.random.RandomState(protocol.score_shuffle_seed).permutation(len(logits))]
    splits = min(protocol.score_splits(len(logits)), len(logits))
    mean, std = distances.inception_score(logits, splits)
    result: dict[str, Any] = {"inception_score": mean, "inception_score_std": std}
    if splits > 1:  # the splits are disjoint, so their spread is that of their mean
        result["inception_score_standard_error"] = std / np.sqrt(splits - 1)
    return result


def _by_image(
    metric: str, generated: np.ndarray, reference: np.ndarray, protocol: Protocol, names: Names, intervals: bool
) -> dict[str, Any]:
    if metric == "cmmd":
        return {names.cmmd: clip_mmd(reference, generated)}
    if metric == "kid":
        size = min(protocol.kernel_subset_size, len(generated), len(reference))
        mean, std = kernels.kernel_distance(generated, reference, protocol.kernel_subsets, size)
        name = names.kernel
        result: dict[str, Any] = {name: mean, f"{name}_std": std, f"{name}_subset_size": size}
        if intervals:  # three kernel matrices of all images
            whole, error = kernels.kernel_distance_error(generated, reference)
            result |= {f"{name}_all_images": whole, f"{name}_standard_error": error}
        return result
    if metric == "prc":
        precision, recall = neighbours.precision_recall(
            reference, generated, protocol.neighbours, protocol.neighbour_precision
        )
        return {names.plain("precision"): precision, names.plain("recall"): recall}
    density, coverage = neighbours.density_coverage(reference, generated)
    return {names.plain("density"): density, names.plain("coverage"): coverage}
