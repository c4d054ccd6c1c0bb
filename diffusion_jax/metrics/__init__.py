"""Measures of generated images; every value is stored beside the protocol that gives it a meaning."""

from diffusion_jax.metrics.distances import (
    frechet_distance,
    inception_score,
    kernel_distance,
    moments,
    precision_recall,
)

__all__ = ["frechet_distance", "inception_score", "kernel_distance", "moments", "precision_recall"]
