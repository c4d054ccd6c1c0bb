"""Respacing, learned variances, DDIM and its inversion against guided-diffusion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import process, samplers
from diffusion_jax.diffusion.samplers import spacing
from tests import golden

CHAINS = {"linear": process.linear(), "cosine": process.cosine()}


def mean_network(x, t):
    """The first half of the goldens' network (goldens/README.md)."""
    return jnp.tanh(0.7 * x + 0.3 * jnp.sin(t / 1000 * 6.283185307179586) - 0.05)


def network(x, t):
    return jnp.concatenate([mean_network(x, t), jnp.sin(2 * x + 0.1)], axis=-1)


@pytest.mark.parametrize("sections", ["250", "25", "10,15,20", "ddim50", "ddim25"])
def test_respacing(sections):
    expected = golden.load("guided-diffusion")[f"respace/{sections}"]
    np.testing.assert_array_equal(spacing.respace(1000, sections)[::-1], expected)
    sampler = samplers.ddpm(CHAINS["linear"], "epsilon", respacing=sections)
    np.testing.assert_array_equal(sampler.timesteps[::-1], expected)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("ddim300", "no integer stride visits exactly 300 of 1000"),
        ("500,700", "num_steps is 700"),
        ("a,b", "respacing is 'a,b'; it can be"),
        ("ddim5,5", "respacing is 'ddim5,5'"),
    ],
)
def test_impossible_respacings_are_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        spacing.respace(1000, sections)


@pytest.mark.parametrize("schedule", CHAINS)
def test_schedule(schedule):
    reference = golden.load("guided-diffusion")
    np.testing.assert_allclose(CHAINS[schedule].betas, reference[f"schedule/{schedule}/betas"], rtol=1e-12)
    # The lower end of the learned range is the posterior's variance, clipped at its second entry.
    sampler = samplers.ddpm(CHAINS[schedule], "epsilon", respacing="25", variance="learned_range")
    np.testing.assert_allclose(
        np.asarray(sampler.table.log_variance)[::-1, 0],
        reference[f"schedule/{schedule}/posterior_log_variance_clipped"],
        rtol=1e-12,
    )


@pytest.mark.parametrize("schedule", CHAINS)
def test_learned_variance(schedule):
    reference = golden.load("guided-diffusion")
    sampler = samplers.ddpm(CHAINS[schedule], "epsilon", respacing="25", variance="learned_range")
    x_T, noise = reference[f"sample/{schedule}/x_T"], reference[f"sample/{schedule}/noise"]
    x, _ = samplers.sample(sampler, network, jnp.asarray(x_T), noise=noise)
    np.testing.assert_allclose(x, reference[f"sample/{schedule}/learned-variance-25"], atol=1e-5)


@pytest.mark.parametrize("schedule", CHAINS)
def test_ddim(schedule):
    reference = golden.load("guided-diffusion")
    sampler = samplers.ddim(CHAINS[schedule], "epsilon", respacing="25", clip=1.0, rederive_epsilon=True)
    x, _ = samplers.sample(sampler, mean_network, jnp.asarray(reference[f"sample/{schedule}/x_T"]))
    np.testing.assert_allclose(x, reference[f"sample/{schedule}/ddim-25"], atol=1e-5)


@pytest.mark.parametrize("schedule", CHAINS)
def test_ddim_inversion(schedule):
    reference = golden.load("guided-diffusion")
    sampler = samplers.ddim_inversion(CHAINS[schedule], "epsilon", respacing="25", clip=1.0)
    x, _ = samplers.sample(sampler, mean_network, jnp.asarray(reference[f"invert/{schedule}/x0"]))
    np.testing.assert_allclose(x, reference[f"invert/{schedule}/ddim-25"], atol=1e-5)


def test_ddim_returns_from_the_noise_of_its_inversion():
    chain = CHAINS["linear"]
    image = 0.5 * jax.random.normal(jax.random.key(0), (2, 4, 4, 1))

    def there_and_back(num_steps):
        noise, _ = samplers.sample(samplers.ddim_inversion(chain, "v", num_steps), mean_network, image)
        back, _ = samplers.sample(samplers.ddim(chain, "v", num_steps), mean_network, noise)
        return float(np.abs(back - image).max())

    errors = [there_and_back(num_steps) for num_steps in (50, 200)]
    assert errors[1] < 0.03 and errors[1] < 0.4 * errors[0]
