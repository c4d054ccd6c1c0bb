"""The smallest metric that is whole: how far apart the means of two sets lie, and others that need words or pairs."""

import numpy as np

from diffusion_jax.metrics.metric import Comparison, Metric, Need, suffixed

ROWS = frozenset({Need.ROWS})


def gap(compared: Comparison) -> dict[str, float]:
    generated, reference = compared.rows
    distance = float(np.abs(generated.mean(0) - reference.mean(0)).max())
    return {suffixed("gap", compared.protocol.extractor): distance}


def spread(compared: Comparison) -> dict[str, float]:
    """How far the means of the classes that were asked for lie from each other."""
    rows, labels = compared.generated.rows, compared.generated.labels
    means = np.stack([rows[labels == label].mean(0) for label in np.unique(labels)])
    return {suffixed("class_spread", compared.protocol.extractor): float(np.ptp(means, axis=0).max())}


def length(compared: Comparison) -> dict[str, float]:
    """How the first feature goes with the length of the prompt."""
    lengths = [len(prompt) for prompt in compared.generated.prompts]
    return {"prompt_length": float(np.corrcoef(lengths, compared.generated.rows[:, 0])[0, 1])}


def pairs(compared: Comparison) -> dict[str, float]:
    generated, reference = compared.rows
    return {"pair_distance": float(np.square(generated - reference).mean())}


GAP = Metric("gap", "the largest distance of two means", gap, lambda extractor: suffixed("gap", extractor), ROWS, ROWS)
SPREAD = Metric(
    "class-spread", "how far classes lie apart", spread, lambda extractor: suffixed("class_spread", extractor),
    of_generated=ROWS | {Need.LABELS}, higher_is_better=("class_spread",),
)  # fmt: skip
LENGTH = Metric(
    "prompt-length", "whether long prompts are seen", length, lambda extractor: "prompt_length",
    of_generated=ROWS | {Need.PROMPTS}, higher_is_better=("prompt_length",),
)  # fmt: skip
PAIRS = Metric(
    "pairs", "squared distance of pairs", pairs, lambda extractor: "pair_distance",
    of_generated=ROWS, of_reference=ROWS | {Need.PAIRS},
)  # fmt: skip
