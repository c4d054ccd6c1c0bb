"""These metrics compare image with image: kernel distances and nearest neighbours."""

from __future__ import annotations

from typing import Any

from diffusion_jax.metrics import kernels, neighbours
from diffusion_jax.metrics.clip import clip_mmd
from diffusion_jax.metrics.metric import Comparison, Metric, Need, slug, suffixed
from diffusion_jax.metrics.protocols import CLIP, INCEPTION

_ROWS = frozenset({Need.ROWS})


def _kernel_name(extractor: str) -> str:
    return "kid" if extractor == INCEPTION else f"kernel_distance_{slug(extractor)}"


def _subset_size(compared: Comparison) -> int:
    return min(compared.protocol.kernel_subset_size, *map(len, compared.rows))


def _kernel(compared: Comparison) -> dict[str, Any]:
    generated, reference = compared.rows
    name, size = _kernel_name(compared.protocol.extractor), _subset_size(compared)
    mean, std = kernels.kernel_distance(generated, reference, compared.protocol.kernel_subsets, size)
    result: dict[str, Any] = {name: mean, f"{name}_std": std, f"{name}_subset_size": size}
    if compared.intervals:  # three kernel matrices of all images
        whole, error = kernels.kernel_distance_error(generated, reference)
        result |= {f"{name}_all_images": whole, f"{name}_standard_error": error}
    return result


def _few_images(compared: Comparison) -> str | None:
    size, wanted = _subset_size(compared), compared.protocol.kernel_subset_size
    if size >= wanted:
        return None
    return (
        f"kid: its subsets are of {size} images and not of {wanted}, so they are nearly alike: look at the standard "
        "error, not at the deviation"
    )


def _precision_recall(compared: Comparison) -> dict[str, Any]:
    (generated, reference), protocol = compared.rows, compared.protocol
    precision, recall = neighbours.precision_recall(
        reference, generated, protocol.neighbours, protocol.neighbour_precision
    )
    return {suffixed("precision", protocol.extractor): precision, suffixed("recall", protocol.extractor): recall}


def _density_coverage(compared: Comparison) -> dict[str, Any]:
    (generated, reference), extractor = compared.rows, compared.protocol.extractor
    density, coverage = neighbours.density_coverage(reference, generated)
    return {suffixed("density", extractor): density, suffixed("coverage", extractor): coverage}


def _cmmd_name(extractor: str) -> str:
    return "cmmd" if extractor == CLIP else f"cmmd_{slug(extractor)}"


def _cmmd(compared: Comparison) -> dict[str, Any]:
    generated, reference = compared.rows
    return {_cmmd_name(compared.protocol.extractor): clip_mmd(reference, generated)}


def _clip_only(extractor: str) -> str | None:
    if extractor.startswith("clip"):
        return None
    return f"needs CLIP's features (--features clip-vitl14-336), not {extractor}"


KID = Metric(
    "kid",
    "kernel distance: mean and deviation over subsets, and standard error of all",
    _kernel,
    _kernel_name,
    of_generated=_ROWS,
    of_reference=_ROWS,
    caution=_few_images,
)
PRECISION_RECALL = Metric(
    "prc",
    "precision and recall",
    _precision_recall,
    lambda extractor: suffixed("precision", extractor),
    of_generated=_ROWS,
    of_reference=_ROWS,
    higher_is_better=("precision", "recall"),
)
DENSITY_COVERAGE = Metric(
    "dc",
    "density and coverage",
    _density_coverage,
    lambda extractor: suffixed("coverage", extractor),
    of_generated=_ROWS,
    of_reference=_ROWS,
    higher_is_better=("density", "coverage"),
)
CMMD = Metric(
    "cmmd",
    "maximum mean discrepancy of CLIP embeddings (CLIP only)",
    _cmmd,
    _cmmd_name,
    of_generated=_ROWS,
    of_reference=_ROWS,
    refuses=_clip_only,
)
