"""The Inception Score is a metric of the generated images' logits alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffusion_jax.metrics import distances
from diffusion_jax.metrics.metric import Comparison, Metric, Need, inception_only


def _score(compared: Comparison) -> dict[str, Any]:
    logits, protocol = compared.generated.logits, compared.protocol
    assert logits is not None
    if protocol.score_shuffle_seed is not None:
        logits = logits[np.random.RandomState(protocol.score_shuffle_seed).permutation(len(logits))]
    splits = min(protocol.score_splits(len(logits)), len(logits))
    mean, std = distances.inception_score(logits, splits)
    result: dict[str, Any] = {"inception_score": mean, "inception_score_std": std}
    if splits > 1:  # the splits are disjoint, so their spread is that of their mean
        result["inception_score_standard_error"] = std / np.sqrt(splits - 1)
    return result


INCEPTION_SCORE = Metric(
    "is",
    "Inception Score (Inception only; needs no reference)",
    _score,
    lambda extractor: "inception_score",
    of_generated=frozenset({Need.LOGITS}),
    higher_is_better=("inception_score",),
    refuses=inception_only,
)
