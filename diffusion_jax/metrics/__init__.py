"""Measures of generated images; every value is stored beside the protocol that gives it a meaning."""

from diffusion_jax.metrics.classifier import Classifier, train_classifier
from diffusion_jax.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    precision_recall,
)
from diffusion_jax.metrics.scores import score_generated, score_generated_pixels

__all__ = [
    "Classifier",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "moments",
    "precision_recall",
    "score_generated",
    "score_generated_pixels",
    "train_classifier",
]
