"""Bits per dimension through a method, with networks that know the data's distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.diffusion import prediction, process, samplers
from diffusion_jax.diffusion.objective import Objective
from diffusion_jax.diffusion.weighting import simple
from diffusion_jax.methods.diffusion import likelihood
from diffusion_jax.methods.diffusion.model import Diffusion

DEVIATION = 0.3
ENTROPY = 0.5 * np.log2(2 * np.pi * np.e * DEVIATION**2) + np.log2(127.5)


def exact_network(chain, kind):
    """The raw output that stands for the exact denoiser of N(0, DEVIATION^2)."""

    class Exact(nn.Module):
        @nn.compact
        def __call__(self, sample, timestep, class_labels=None, train=False):
            alpha, sigma = process.bcast(chain.alpha(timestep), sample), process.bcast(chain.sigma(timestep), sample)
            denoised = alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2) * sample
            return prediction.from_denoised(kind, denoised, sample, alpha, sigma)

    return Exact()


@pytest.mark.parametrize(
    ("chain", "kind", "above"),
    [
        (process.cosine(500), "v", 0.9),
        (process.VPSDE(), "epsilon", 0.05),
        (process.RectifiedFlow(t_stop=1e-3), "velocity", 0.05),
        (process.EDM(), "sample", 0.05),
    ],
)
def test_gaussian_images_have_their_entropy(chain, kind, above):
    """The bound of a chain lies above it by its decoder's coarseness; the flow's density meets it."""
    sampler = samplers.euler(chain, kind, 3)
    method = Diffusion(exact_network(chain, kind), Objective(chain, kind, simple()), sampler, (4, 4, 1))
    images = jnp.round(DEVIATION * jax.random.normal(jax.random.key(0), (64, 4, 4, 1)) * 127.5) / 127.5
    bits = likelihood.bits_per_dimension(method, {}, images, None, jax.random.key(1))
    sampling_error = float(bits.std()) / 8
    assert bits.shape == (64,)
    assert -4 * sampling_error - 0.02 < float(bits.mean()) - ENTROPY < above + 4 * sampling_error
    assert likelihood.estimate_name(method).startswith("var" if isinstance(chain, process.DiscreteProcess) else "prob")
