"""Preconditioning against what Karras et al. 2022 derive it from."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import preconditioning
from diffusion_jax.diffusion.preconditioning import PRECONDITIONINGS

SIGMAS = np.geomspace(0.01, 80, 9)


def test_edm_keeps_input_target_and_error_at_unit_size():
    """Appendix B.6: c_in and c_out give unit variance to the input and the target, and c_skip minimises c_out."""
    sigma_data = 0.5
    c = preconditioning.edm(SIGMAS, sigma_data)
    np.testing.assert_allclose(c.c_in**2 * (sigma_data**2 + SIGMAS**2), 1)
    target_variance = ((1 - c.c_skip) ** 2 * sigma_data**2 + c.c_skip**2 * SIGMAS**2) / c.c_out**2
    np.testing.assert_allclose(target_variance, 1)
    for nudge in (-1e-3, 1e-3):
        skip = c.c_skip + nudge
        assert ((1 - skip) ** 2 * sigma_data**2 + skip**2 * SIGMAS**2 > c.c_out**2).all()


@pytest.mark.parametrize("name", ["vp", "iddpm"])
def test_noise_predicting_networks_see_a_variance_preserving_input(name):
    """A network that gives the noise is turned into x_0, from an input of the variance that it was trained at."""
    x0, noise = 0.3, -1.2
    x = x0 + SIGMAS * noise
    c = PRECONDITIONINGS[name](SIGMAS)
    np.testing.assert_allclose(c.c_skip * x + c.c_out * noise, x0, atol=1e-12)
    alphas_cumprod = 1 / (1 + SIGMAS**2)
    np.testing.assert_allclose(c.c_in * x, np.sqrt(alphas_cumprod) * x0 + np.sqrt(1 - alphas_cumprod) * noise)


def test_ve_networks_give_minus_the_noise():
    x0, noise = 0.3, -1.2
    c = preconditioning.ve(SIGMAS)
    np.testing.assert_allclose(c.c_skip * (x0 + SIGMAS * noise) + c.c_out * -noise, x0, atol=1e-12)


def test_vp_tells_the_network_the_time_of_the_noise_level():
    t = np.linspace(1e-3, 1, 7)
    sigma = preconditioning.vp_sigma(t)
    np.testing.assert_allclose(preconditioning.vp(sigma).c_noise, 999 * t, rtol=1e-9)
    # d log(1 + sigma^2) / dt is the rate beta(t) of the SDE.
    rate = np.log1p(preconditioning.vp_sigma(t + 1e-5) ** 2) - np.log1p(preconditioning.vp_sigma(t - 1e-5) ** 2)
    np.testing.assert_allclose(rate / 2e-5, 0.1 + 19.9 * t, rtol=1e-6)


def test_iddpm_levels_are_those_of_the_cosine_chain():
    from diffusion_jax.diffusion import process

    levels = preconditioning.iddpm_sigmas(100)
    alphas_cumprod = process.cosine(100).alphas_cumprod
    np.testing.assert_allclose(1 / (1 + levels[:-1][::-1] ** 2), alphas_cumprod, rtol=1e-4)
    assert levels[-1] == 0
    np.testing.assert_array_equal(preconditioning.iddpm(levels[:-1], 100).c_noise, np.arange(99, -1, -1))


@pytest.mark.parametrize("name", PRECONDITIONINGS)
def test_numpy_and_jax_agree(name):
    here, there = PRECONDITIONINGS[name](SIGMAS), PRECONDITIONINGS[name](jnp.asarray(SIGMAS, jnp.float32))
    for one, two in zip(here, there, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5)
