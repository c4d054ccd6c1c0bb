"""Noise schedules and the forward process against diffusers, and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import prediction, process
from tests import golden

SCHEDULES = {
    "linear": process.linear(),
    "scaled_linear": process.scaled_linear(),
    "squaredcos_cap_v2": process.cosine(),
    "sigmoid": process.sigmoid(),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_forward_process_matches_diffusers(name):
    reference = golden.load("samplers")
    chain = SCHEDULES[name]
    x0, noise, t, x_t, v = (reference[f"schedule/{name}/{key}"] for key in ("x0", "noise", "t", "x_t", "v"))
    # diffusers builds its tables in float32, which costs it some 1e-5 relative at the noisy end.
    np.testing.assert_allclose(chain.alphas_cumprod, reference[f"schedule/{name}/alphas_cumprod"], rtol=3e-5, atol=1e-9)
    np.testing.assert_allclose(chain.add_noise(x0, noise, t), x_t, rtol=1e-5, atol=5e-6)
    alpha, sigma = (process.bcast(f(t), x0) for f in (chain.alpha, chain.sigma))
    np.testing.assert_allclose(prediction.target("v", x0, noise, alpha, sigma), v, rtol=1e-5, atol=1e-5)


def test_log_snr_is_that_of_alpha_and_sigma():
    chain = process.cosine()
    t = jnp.array([0, 10, 500, 990])
    np.testing.assert_allclose(chain.log_snr(t), 2 * jnp.log(chain.alpha(t) / chain.sigma(t)), rtol=1e-4)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_step():
    plain, rescaled = process.scaled_linear(), process.scaled_linear(zero_terminal_snr=True)
    assert rescaled.alphas_cumprod[-1] == 0
    np.testing.assert_allclose(rescaled.alphas_cumprod[0], plain.alphas_cumprod[0], rtol=1e-12)
    assert (np.diff(rescaled.alphas_cumprod) < 0).all()


def test_time_at_is_uniform_over_the_chain():
    chain = process.linear(num_timesteps=7)
    u = jnp.linspace(0, 1, 7 * 100, endpoint=False) + 1e-4
    assert np.bincount(chain.time_at(u), minlength=7).tolist() == [100] * 7
    assert chain.time_at(jnp.float32(1.0)) == 6


@pytest.mark.parametrize(
    "betas", [np.zeros(3), np.array([0.1, 1.5]), np.zeros((2, 2)), np.array([]), np.array([0.1, -0.1])]
)
def test_impossible_betas_are_refused(betas):
    with pytest.raises(ValueError, match="bet"):
        process.DiscreteProcess(betas)


@pytest.mark.parametrize("source", prediction.PREDICTIONS)
@pytest.mark.parametrize("destination", prediction.PREDICTIONS)
def test_conversions_round_trip_in_float64(source, destination):
    random = np.random.default_rng(0)
    x0, noise, output = random.standard_normal((3, 50))
    angle = random.uniform(0.05, 1.5, 50)
    for alpha, sigma in [
        (np.cos(angle), np.sin(angle)),
        (1 - angle / 2, angle / 2),
        (np.ones(50), 20 * angle),
    ]:
        x = alpha * x0 + sigma * noise
        there = prediction.convert(source, destination, output, x, alpha, sigma)
        back = prediction.convert(destination, source, there, x, alpha, sigma)
        np.testing.assert_allclose(back, output, rtol=1e-9, atol=1e-9)
        # The target of one prediction, converted, is the target of the other.
        converted = prediction.convert(
            source, destination, prediction.target(source, x0, noise, alpha, sigma), x, alpha, sigma
        )
        np.testing.assert_allclose(
            converted, prediction.target(destination, x0, noise, alpha, sigma), rtol=1e-8, atol=1e-8
        )


def test_score_is_the_gradient_of_the_log_density():
    alpha, sigma, x0 = 0.6, 0.8, 0.3
    x = jnp.float32(1.1)
    score = jax.grad(lambda x: -((x - alpha * x0) ** 2) / (2 * sigma**2))(x)
    np.testing.assert_allclose(prediction.from_denoised("score", x0, x, alpha, sigma), score, rtol=1e-6)
