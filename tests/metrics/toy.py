"""A tiny extractor that calls itself by the name of Inception's, so that everything around it can be tested."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.metrics import protocols
from diffusion_jax.metrics.features.extractor import Extractor

DIM, CLASSES, SPATIAL = 6, 5, 4


@functools.cache
def extractor(name=protocols.INCEPTION, preprocessing="tf", fast=False):
    """Outputs are smooth functions of the channels' means and deviations, for images of any size."""
    random = np.random.default_rng(0)
    params = {
        "features": random.normal(size=(6, DIM)).astype(np.float32),
        "logits": random.normal(size=(DIM, CLASSES)).astype(np.float32),
    }

    def apply(params, images, dtype=jnp.uint8):
        assert images.dtype == dtype
        assert images.shape[-1] == 3
        x = images.astype(jnp.float32) / 255
        summary = jnp.concatenate([x.mean((1, 2)), x.std((1, 2))], -1)
        features = jnp.tanh(jnp.matmul(summary, params["features"], precision=jax.lax.Precision.HIGHEST))
        logits = 3 * jnp.matmul(features, params["logits"], precision=jax.lax.Precision.HIGHEST)
        return {"features": features, "spatial": features[:, :SPATIAL] ** 2, "logits_unbiased": logits}

    settings = {"preprocessing": preprocessing, "precision": "fast" if fast else "float32-highest"}
    unrounded = functools.partial(apply, dtype=jnp.float32)
    return Extractor(name, apply, params, DIM, "toy", settings, unrounded)
