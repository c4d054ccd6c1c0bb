"""How likely test images are under a trained model: bounds of their likelihood from below."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from diffusion_jax import data
from diffusion_jax.diffusion.arrays import key_of_seed
from diffusion_jax.methods.method import Run
from diffusion_jax.methods.variational_autoencoder.model import Bounds, VariationalAutoencoder

# A latent whose mean varies less from image to image holds nothing of them (Burda et al. 2016, appendix C).
_ACTIVE = 0.01


def of_test_images(run: Run) -> dict[str, Any]:
    """Entries of evaluation.json about config.evaluation.num_likelihood_images test images.

    "likelihood" holds the bounds and their parts, in nats an image. Where values are grey levels, "bits_per_dimension"
    is what the closer bound says of a value.
    """
    model: VariationalAutoencoder = run.model
    evaluation = run.config.evaluation
    images, labels = data.load_arrays(run.test_source, limit=evaluation.num_likelihood_images)

    def estimate(params: Any, indices: jax.Array, images: jax.Array, labels: jax.Array) -> Bounds:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key_of_seed(run.config.seed), indices)
        return model.bounds(params, images, labels, keys, evaluation.importance_samples)

    return summary(model, run.batched(estimate)(data.to_float(images), labels), evaluation.importance_samples)


def summary(model: VariationalAutoencoder, bounds: Bounds, num_samples: int) -> dict[str, Any]:
    """What `of_test_images` says, of bounds as arrays [N]."""
    count = len(bounds.evidence)
    estimate = f"importance-weighted bound, {num_samples} latents an image"
    said: dict[str, Any] = {
        "likelihood": {
            "unit": f"{model.likelihood.unit}, an image",
            "importance_weighted_bound": float(bounds.importance_weighted.mean()),
            "evidence_lower_bound": float(bounds.evidence.mean()),
            "standard_error": float(bounds.importance_weighted.std() / np.sqrt(count)),
            "reconstruction": float(bounds.reconstruction.mean()),
            "kl": float(bounds.kl.mean()),
            "active_latents": int((bounds.mean.var(0) > _ACTIVE).sum()),
            "latents": model.latent_size,
            "importance_samples": num_samples,
            "images": count,
        }
    }
    if model.likelihood.levels is not None:
        bits = -bounds.importance_weighted / (np.prod(model.image_shape) * np.log(2))
        said["bits_per_dimension"] = {
            "mean": float(bits.mean()),
            "standard_error": float(bits.std() / np.sqrt(count)),
            "images": count,
            "estimate": estimate,
            "uncompressed": float(np.log2(model.likelihood.levels)),
        }
    return said
