"""Feature extractors by name: what a protocol calls its features."""

from pathlib import Path

from diffusion_jax.metrics.features.extractor import Extractor
from diffusion_jax.metrics.features.small_classifier import DIGITS_CLASSIFIER, classifier_extractor, digits_classifier

NAMES = (DIGITS_CLASSIFIER,)

__all__ = ["NAMES", "Extractor", "classifier_extractor", "load"]


def load(name: str, weights: str | Path | None = None, *, fast: bool = False) -> Extractor:
    """The extractor of that name, its weights in memory.

    Args:
      name: one of `NAMES`.
      weights: the file (or folder) that holds its weights; None for those that are installed, cached or downloaded.
      fast: default matrix precision and bfloat16 convolutions, which move the numbers; recorded in the settings.

    Raises:
      ValueError: in one line: an unknown name, weights that are missing (with the file to put and where) or unreadable.
    """
    if name == DIGITS_CLASSIFIER:
        if weights is not None or fast:
            raise ValueError(f"{name} is trained where it is used: it takes neither weights nor fast")
        return digits_classifier()
    raise ValueError(f"features {name!r} are unknown; they could be {', '.join(NAMES)}")
