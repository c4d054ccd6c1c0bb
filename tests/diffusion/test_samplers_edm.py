"""The samplers of Karras et al. 2022 against the authors' code, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import process, samplers
from tests import golden

LEVELS = process.EDM()


def toy_denoiser(x, sigma):
    """The denoiser of the goldens (goldens/README.md): given the noise level, it answers with x_0."""
    return jnp.tanh(0.3 * x) * 0.25 / (sigma**2 + 0.25) + 0.1 * jnp.sin(x) / (1 + sigma)


def run(sampler, noise=None):
    latents = golden.load("edm-samplers")["latents"]
    with jax.enable_x64(True):
        x_T = jnp.asarray(latents) * sampler.init_noise_sigma
        x, _ = samplers.sample(sampler, toy_denoiser, x_T, noise=noise, return_trajectory=False)
        return np.asarray(x)


@pytest.mark.parametrize("num_steps", [18, 40])
def test_algorithm_1(num_steps):
    sampler = samplers.edm(LEVELS, "sample", num_steps)
    assert sampler.num_evaluations == 2 * num_steps - 1 and not sampler.stochastic
    np.testing.assert_allclose(run(sampler), golden.load("edm-samplers")[f"heun/{num_steps}"], atol=1e-12)


@pytest.mark.parametrize("num_steps", [18, 40])
def test_algorithm_2(num_steps):
    sampler = samplers.edm(LEVELS, "sample", num_steps, s_churn=30, s_min=0.01, s_max=1, s_noise=1.007)
    expected = golden.load("edm-samplers")
    x = run(sampler, expected[f"churn/{num_steps}/noise"])
    np.testing.assert_allclose(x, expected[f"churn/{num_steps}"], atol=1e-12)


@pytest.mark.parametrize("num_steps", [18, 40])
@pytest.mark.parametrize("columns", ["vp-vp-vp", "ve-ve-none", "edm-linear-none", "iddpm-linear-none"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_ablations(columns, solver, num_steps):
    discretization, schedule, scaling = columns.split("-")
    sampler = samplers.edm_ablation(
        LEVELS,
        "sample",
        num_steps,
        solver=solver,
        discretization=discretization,
        schedule=schedule,
        scaling=scaling,
        sigma_min=0.02,
        sigma_max=50,
    )
    expected = golden.load("edm-samplers")[f"ablation/{columns}-{solver}/{num_steps}"]
    # The authors' iDDPM levels have the rounding of a float32 sine.
    np.testing.assert_allclose(run(sampler), expected, atol=1e-8 if discretization == "iddpm" else 1e-12)


def test_heun_on_the_karras_grid_is_algorithm_1():
    np.testing.assert_allclose(
        run(samplers.heun(LEVELS, "sample", 18)), run(samplers.edm(LEVELS, "sample", 18)), rtol=1e-4
    )


def test_a_network_of_another_process_is_called_in_its_own_units():
    """The same denoiser dressed as a noise predictor of a VP process gives the same image through the EDM sampler."""
    vp = process.VPSDE()

    def dressed(x, t):
        alpha, sigma = vp.alpha(t), vp.sigma(t)
        return (x - alpha * toy_denoiser(x / alpha, sigma / alpha)) / sigma

    sampler = samplers.edm(vp, "epsilon", 18, s_churn=5.0, sigma_max=50.0)
    plain = samplers.edm(LEVELS, "sample", 18, s_churn=5.0, sigma_max=50.0)
    noise = np.random.default_rng(0).standard_normal((18, 2, 4, 4, 3))
    latents = golden.load("edm-samplers")["latents"]
    with jax.enable_x64(True):
        x_T = jnp.asarray(latents) * 50
        one, _ = samplers.sample(sampler, dressed, x_T, noise=noise)
        two, _ = samplers.sample(plain, toy_denoiser, x_T, noise=noise)
        np.testing.assert_allclose(one, two, atol=1e-8)


@pytest.mark.parametrize(
    "options", [{"solver": "rk4"}, {"discretization": "cosine"}, {"schedule": "edm"}, {"scaling": "ve"}]
)
def test_unknown_columns_are_refused(options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name} is '{value}'; it can be"):
        samplers.edm_ablation(LEVELS, "sample", 5, **options)
