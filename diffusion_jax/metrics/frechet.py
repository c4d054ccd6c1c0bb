"""Three metrics are Frechet distances: of features, of spatial features, and of infinitely many images."""

from __future__ import annotations

from typing import Any

from diffusion_jax.metrics import uncertainty
from diffusion_jax.metrics.metric import Comparison, Metric, Need, inception_only, slug
from diffusion_jax.metrics.protocols import DINOV2, INCEPTION

# Groups of the jackknife.
GROUPS = 10


def name(extractor: str) -> str:
    """Says what the distance of these features is called; FID and FD-DINOv2 are names of one network each."""
    if extractor == INCEPTION:
        return "fid"
    if extractor == DINOV2:
        return "fd_dinov2"
    return f"frechet_distance_{slug(extractor)}"


def _check(compared: Comparison) -> None:
    generated, reference = compared.generated.features, compared.reference.features
    if reference is None:
        raise ValueError("metric 'fid' needs the reference's moments")
    assert generated is not None
    if len(generated.mean) != len(reference.mean):
        raise ValueError(
            f"--reference has {len(reference.mean)} features and --generated {len(generated.mean)}: they are of "
            "different networks"
        )


def _fid(compared: Comparison) -> dict[str, Any]:
    _check(compared)
    generated, reference, key = compared.generated, compared.reference.features, name(compared.protocol.extractor)
    assert generated.features is not None and reference is not None
    result: dict[str, Any] = {key: generated.features.distance(reference)}
    if compared.intervals and generated.rows is not None and len(generated.rows) >= 2 * GROUPS:
        interval = uncertainty.frechet_interval(uncertainty.parts(generated.rows, GROUPS), reference)
        result[f"{key}_standard_error"] = interval.standard_error
        result[f"{key}_interval_95"] = [interval.low, interval.high]
    return result


def _infinity(compared: Comparison) -> dict[str, Any]:
    _check(compared)
    rows, reference = compared.generated.rows, compared.reference.features
    assert rows is not None and reference is not None
    return {f"{name(compared.protocol.extractor)}_infinity": uncertainty.frechet_infinity(rows, reference)}


def _spatial(compared: Comparison) -> dict[str, Any]:
    generated, reference = compared.generated.spatial, compared.reference.spatial
    assert generated is not None and reference is not None
    return {"sfid": generated.distance(reference)}


FID = Metric(
    "fid",
    "Frechet distance, with standard error and 95 % interval",
    _fid,
    name,
    of_generated=frozenset({Need.MOMENTS}),
    of_reference=frozenset({Need.MOMENTS}),
    for_intervals=frozenset({Need.ROWS}),
)
SFID = Metric(
    "sfid",
    "Frechet distance of spatial features (Inception only)",
    _spatial,
    lambda extractor: "sfid",
    of_generated=frozenset({Need.SPATIAL}),
    of_reference=frozenset({Need.SPATIAL}),
    refuses=inception_only,
)
FID_INFINITY = Metric(
    "fid-infinity",
    "Frechet distance extrapolated to infinitely many generated images",
    _infinity,
    lambda extractor: f"{name(extractor)}_infinity",
    of_generated=frozenset({Need.MOMENTS, Need.ROWS}),
    of_reference=frozenset({Need.MOMENTS}),
)
