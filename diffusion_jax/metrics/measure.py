"""What the asked metrics need is gathered from images here, and their numbers are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from diffusion_jax.metrics import features
from diffusion_jax.metrics.extraction import Extraction
from diffusion_jax.metrics.features.extractor import Extractor
from diffusion_jax.metrics.metric import Comparison, Metric, Need, Side
from diffusion_jax.metrics.protocols import INCEPTION, Protocol
from diffusion_jax.metrics.statistics import with_divisor
from diffusion_jax.metrics.table import DEFAULT_METRICS, DEFAULT_WITHOUT_REFERENCE, METRICS

__all__ = ["DEFAULT_METRICS", "DEFAULT_WITHOUT_REFERENCE", "METRICS", "Need", "Side"]

FEATURES, SPATIAL, LOGITS = "features", "spatial", "logits_unbiased"


def resolve_features(name: str) -> str:
    """Finds an extractor by the beginning of its name, such as digits; raises ValueError if none or several fit."""
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
        if (why := METRICS[metric].refuses(extractor)) is not None:
            raise ValueError(f"metric {metric!r} {why}")


def is_higher_better(name: str) -> bool:
    """Tells whether a number of `score` is better when it is higher."""
    return any(name.startswith(metric.higher_is_better) for metric in METRICS.values() if metric.higher_is_better)


def needing(need: Need, metrics: Iterable[str]) -> str | None:
    """Finds the first of the metrics that needs this of either side; None if none does."""
    return next((name for name in metrics if need in METRICS[name].of_generated | METRICS[name].of_reference), None)


def needs_rows(metrics: Iterable[str]) -> bool:
    """Tells whether one of the metrics needs the reference's images and not only their moments."""
    return any(Need.ROWS in METRICS[metric].of_reference for metric in metrics)


def extraction_for(
    metrics: Iterable[str],
    extractor: Extractor,
    *,
    is_generated: bool,
    intervals: bool = True,
    is_saved: bool = False,
    mesh: Mesh | None = None,
    kept_places: np.ndarray | None = None,
) -> Extraction:
    """Makes what gathers these metrics' needs of one side; without intervals a FID needs moments alone.

    is_saved: moments of spatial features are gathered where there are any, as statistics files hold them, and as they
    always are of a reference. kept_places: the images whose rows are kept, where rows are needed at all; None for all.
    """
    chosen = [METRICS[metric] for metric in metrics]
    needs = set[Need]().union(*(_needs(metric, is_generated, intervals) for metric in chosen))
    keep = ([FEATURES] if Need.ROWS in needs else []) + ([LOGITS] if Need.LOGITS in needs else [])
    is_spatial = extractor.name == INCEPTION and (not is_generated or is_saved or Need.SPATIAL in needs)
    moments_of = [FEATURES, *([SPATIAL] if is_spatial else [])]
    return Extraction(extractor, mesh, moments_of=moments_of, keep=keep, kept_places=kept_places)


def _needs(metric: Metric, is_generated: bool, intervals: bool) -> frozenset[Need]:
    if not is_generated:
        return metric.of_reference
    return metric.of_generated | metric.for_intervals if intervals else metric.of_generated


def refuse_moments(metrics: Iterable[str]) -> None:
    """Raises ValueError for a metric that needs images, for a reference that has moments alone."""
    for metric in metrics:
        if Need.ROWS in METRICS[metric].of_reference:
            raise ValueError(
                f"metric {metric!r} compares image with image: --reference must hold images, and it holds moments; "
                "metric 'fid' needs no more"
            )


def refuse_missing(metrics: Iterable[str], missing: Mapping[Need, str]) -> None:
    """Raises ValueError for a metric that needs what is missing; the values are the ends of the messages."""
    for metric in metrics:
        for need, why in missing.items():
            if needing(need, [metric]):
                raise ValueError(f"metric {metric!r} needs {need}, {why}")


def reference_places(count: int, protocol: Protocol) -> np.ndarray | None:
    """Marks which of `count` reference images are compared image by image, bool [count]; None for all of them."""
    most = protocol.reference_rows
    if count <= most:
        return None
    places = np.zeros(count, bool)
    places[np.arange(most) * count // most] = True
    return places


def side_of(extraction: Extraction, protocol: Protocol, **asked: Any) -> Side:
    """Gives what an extraction gathered, with labels or prompts. Raises ValueError for fewer than two images."""
    divisor = protocol.covariance_divisor
    spatial = with_divisor(extraction.moments(SPATIAL), divisor) if SPATIAL in extraction.moments_of else None
    return Side(
        with_divisor(extraction.moments(FEATURES), divisor),
        spatial,
        extraction.rows(FEATURES) if FEATURES in extraction.keep else None,
        extraction.rows(LOGITS) if LOGITS in extraction.keep else None,
        extraction.count,
        **asked,
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
    """Computes the numbers of each metric, under names that say whose features they are of.

    Raises ValueError where a side lacks what a metric needs.
    """
    result: dict[str, Any] = {}
    compared = Comparison(generated, reference or Side(None), protocol, intervals)
    for name in metrics:
        metric = METRICS[name]
        say(metric.help.split(",")[0].split(":")[0])
        _check_sides(metric, generated, reference)
        result |= metric.compute(compared)
    return result


def cautions(metrics: Iterable[str], generated: Side, reference: Side | None, protocol: Protocol) -> list[str]:
    """Says what a reader of the metrics' numbers should know, a line each."""
    compared = Comparison(generated, reference or Side(None), protocol)
    said = (METRICS[name].caution(compared) for name in metrics)
    return [line for line in said if line is not None]


def _check_sides(metric: Metric, generated: Side, reference: Side | None) -> None:
    name, needs = metric.name, metric.of_generated | metric.of_reference
    if metric.of_reference and reference is None:
        raise ValueError(f"metric {name!r} compares with a reference: give --reference")
    if Need.ROWS in metric.of_reference and (generated.rows is None or reference is None or reference.rows is None):
        raise ValueError(f"metric {name!r} compares image with image: --reference must hold images")
    if Need.SPATIAL in needs and (generated.spatial is None or reference is None or reference.spatial is None):
        raise ValueError(f"metric {name!r} needs mu_s and sigma_s, which --reference lacks")
    for need, given in ((Need.LABELS, generated.labels), (Need.PROMPTS, generated.prompts)):
        if need in needs and (given is None or len(given) != generated.num_images):
            there = 0 if given is None else len(given)
            raise ValueError(f"metric {name!r} needs {need}: there are {there} for {generated.num_images} images")
    if Need.PAIRS in needs and reference is not None and generated.num_images != reference.num_images:
        raise ValueError(
            f"metric {name!r} compares image i with image i: there are {generated.num_images} generated images and "
            f"{reference.num_images} of the reference"
        )


@dataclasses.dataclass(frozen=True)
class Names:
    """The names say what the numbers of these features are called."""

    extractor: str

    def main(self, metric: str) -> str:
        """Names the number that stands for a metric: its key in the result of `score`."""
        return METRICS[metric].number(self.extractor)
