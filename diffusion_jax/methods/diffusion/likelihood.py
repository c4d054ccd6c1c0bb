"""The likelihood of images under a trained model, in bits per dimension."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax import data
from diffusion_jax.conditions.condition import arguments
from diffusion_jax.diffusion import likelihood, variational
from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.process import DiscreteProcess
from diffusion_jax.methods.diffusion.model import Diffusion
from diffusion_jax.methods.method import Run

# The name of the estimate, for protocols.
BOUND = "variational bound, every timestep, one draw of noise each"
FLOW = "probability-flow ODE, Hutchinson's estimator, one probe; uniform dequantisation"


def estimate_name(method: Diffusion) -> str:
    """Which estimate `bits_per_dimension` gives for a method."""
    return BOUND if isinstance(method.objective.process, DiscreteProcess) else FLOW


def bits_per_dimension(
    method: Diffusion, params: Any, images: jax.Array, condition: Mapping[str, Any], key: jax.Array
) -> jax.Array:
    """-log2 p(image) per dimension [B] of images that were uint8, float [B, H, W, C] in [-1, 1].

    Chains: the variational bound (Ho et al. 2020, eq. 5), an upper bound. Processes in continuous time: the density of
    the probability-flow ODE at the image with uniform noise of one uint8 step on it (Song et al. 2021, section 4.3).
    """
    process, prediction = method.objective.process, method.objective.prediction
    channels, told = method.image_shape[-1], arguments(method.told, condition)

    def network(x: jax.Array, t: jax.Array) -> Any:
        return method.network.apply({"params": params}, x, t, **told)

    if isinstance(process, DiscreteProcess):
        variance = "learned_range" if method.objective.learned_variance else "fixed_small"
        return variational.bits_per_dimension(process, prediction, network, images, variance=variance, key=key).total

    def denoise(y: jax.Array, ratio: jax.Array) -> jax.Array:
        """The estimate of x_0 at y = x_0 + ratio noise, in the units of Karras et al. 2022."""
        alpha = jnp.asarray(process.alpha_at(ratio))
        x = alpha * y
        call = predictions.interface(prediction, process.time_of(ratio), alpha, ratio * alpha)
        return call.on_x * x + call.on_output * network(call.input_scale * x, call.timestep)[..., :channels]

    noise_key, probe_key = jax.random.split(key)
    # Drawn in one dimension, which compiles faster.
    noise = jax.random.uniform(noise_key, (images.size,), minval=-0.5, maxval=0.5).reshape(images.shape)
    dequantised = images + noise / 127.5
    low, high = process.ratio_range()
    # A flow has no signal left at its end; levels beyond 1000 change nothing that float32 can see.
    nats = likelihood.log_likelihood(denoise, dequantised, probe_key, sigma_min=low, sigma_max=min(high, 1e3))
    return likelihood.to_bits_per_dimension(nats, images[0].size)


def of_test_images(run: Run) -> dict[str, Any]:
    """Mean and standard error of config.evaluation.num_likelihood_images test images, without guidance."""
    model: Diffusion = run.model
    images, condition = data.gather(
        run.test_source, data.spaced(len(run.test_source), run.config.evaluation.num_likelihood_images)
    )
    encoded = {name: known.encode(condition[name]) for name, known in model.told.items()}

    def estimate(params: Any, indices: jax.Array, images: jax.Array, condition: Mapping[str, Any]) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(run.config.seed), indices[0])
        return bits_per_dimension(model, params, images, condition, key)

    bits = run.batched(estimate)(data.to_float(images), encoded)
    return {
        "mean": float(bits.mean()),
        "standard_error": float(bits.std() / np.sqrt(len(bits))),
        "images": len(bits),
        "estimate": estimate_name(model),
    }
