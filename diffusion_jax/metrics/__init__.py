"""Measures of generated images; every value is stored beside the protocol that gives it a meaning."""

from diffusion_jax.metrics.classifier import Classifier, train_classifier
from diffusion_jax.metrics.clip import clip_mmd, clip_score
from diffusion_jax.metrics.distances import frechet_distance, inception_score, moments
from diffusion_jax.metrics.features import load_inception
from diffusion_jax.metrics.kernels import kernel_distance, kernel_distance_error
from diffusion_jax.metrics.neighbours import density_coverage, precision_recall
from diffusion_jax.metrics.scores import score_generated, score_generated_pixels

__all__ = [
    "Classifier",
    "clip_mmd",
    "clip_score",
    "density_coverage",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "kernel_distance_error",
    "load_inception",
    "moments",
    "precision_recall",
    "score_generated",
    "score_generated_pixels",
    "train_classifier",
]
