"""The ODE likelihood against densities that are known."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion import likelihood

DEVIATIONS = jnp.array([0.2, 0.5, 1.0])


def exact(x, sigma):
    """The denoiser of N(0.1, diag(DEVIATIONS^2))."""
    gain = DEVIATIONS**2 / (DEVIATIONS**2 + sigma**2)
    return 0.1 + gain * (x - 0.1)


def log_density(x, sigma):
    variance = DEVIATIONS**2 + sigma**2
    return -0.5 * jnp.sum((x - 0.1) ** 2 / variance + jnp.log(2 * np.pi * variance), axis=-1)


def test_a_gaussian_has_its_density():
    """A linear flow has a diagonal Jacobian, for which random signs are exact."""
    x = 0.1 + DEVIATIONS * jax.random.normal(jax.random.key(0), (5, 3))
    ours = likelihood.log_likelihood(exact, x, jax.random.key(1), num_steps=100)
    np.testing.assert_allclose(ours, log_density(x, 0.002), atol=1e-2)


def test_the_estimate_is_unbiased_where_probes_matter():
    """Rotated data has a full Jacobian: single estimates scatter, their mean does not."""
    rotation, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(2), (3, 3)))
    x = 0.1 + DEVIATIONS * jax.random.normal(jax.random.key(0), (1, 3))
    repeated = jnp.repeat(x @ rotation.T, 400, axis=0)
    ours = likelihood.log_likelihood(
        lambda y, sigma: exact(y @ rotation, sigma) @ rotation.T, repeated, jax.random.key(1), num_steps=60
    )
    assert ours.std() > 0.05
    np.testing.assert_allclose(ours.mean(), log_density(x, 0.002)[0], atol=4 * float(ours.std()) / 20)


def test_a_mixture_has_its_density():
    """Two Gaussians on a line: the flow is curved, and one dimension needs no luck with the probes."""
    means, deviation = jnp.array([-0.5, 0.5]), 0.2

    def parts(x, sigma):
        variance = deviation**2 + sigma**2
        return -((x - means) ** 2) / (2 * variance) - 0.5 * jnp.log(2 * np.pi * variance) - np.log(2)

    def denoise(x, sigma):
        weights = jax.nn.softmax(parts(x, sigma), axis=-1)
        gain = deviation**2 / (deviation**2 + sigma**2)
        return jnp.sum(weights * (means + gain * (x - means)), axis=-1, keepdims=True)

    x = jnp.linspace(-1, 1, 7)[:, None]
    ours = likelihood.log_likelihood(denoise, x, jax.random.key(0), num_steps=300)
    np.testing.assert_allclose(ours, jax.nn.logsumexp(parts(x, 0.002), axis=-1), atol=5e-3)


def test_bits_of_a_uniform_density():
    """Every value equally likely: eight bits a dimension, but for the half bins beyond the ends."""
    bits = likelihood.to_bits_per_dimension(jnp.array([-12 * np.log(2)]), 12)
    np.testing.assert_allclose(bits, 1 + np.log2(127.5), rtol=1e-6)
