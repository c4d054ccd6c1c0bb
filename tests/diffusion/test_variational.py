"""Variational losses and likelihoods against guided-diffusion, and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import process, variational
from diffusion_jax.diffusion.objective import Objective
from diffusion_jax.diffusion.weighting import simple
from tests import golden

CHAINS = {"linear": process.linear(), "cosine": process.cosine()}


def network(x, t):
    """The network of the golden (goldens/README.md): epsilon and the learned-range variance."""
    phase = process.bcast(jnp.asarray(t) / 1000 * 6.283185307179586, x)
    return jnp.concatenate([jnp.tanh(0.7 * x + 0.3 * jnp.sin(phase) - 0.05), jnp.sin(2 * x + 0.1)], axis=-1)


@pytest.mark.parametrize("schedule", CHAINS)
@pytest.mark.parametrize(
    ("form", "bound", "factor"),
    [
        ("RESCALED_MSE", "hybrid", 1.0),
        ("MSE", "hybrid_unscaled", 1.0),
        ("RESCALED_KL", "vlb", 1.0),
        ("KL", "vlb", 1 / 1000),
    ],
)
def test_losses_with_learned_variance_match_guided_diffusion(schedule, form, bound, factor):
    reference = golden.load("guided-diffusion")
    x0, noise, t, loss = (
        jnp.asarray(reference[f"loss/{schedule}/{form}/{key}"]) for key in ("x0", "noise", "t", "loss")
    )
    objective = Objective(CHAINS[schedule], "epsilon", simple(), bound)
    np.testing.assert_allclose(objective.at(network, x0, noise, t) * factor, loss, rtol=1e-4)


def test_the_bound_weighs_more_in_longer_chains_unless_unscaled():
    """L_hybrid's lambda is 0.001 with the bound of all T terms: T / 1000 of one term, which is 4 where T is 4000."""
    chain = process.cosine(4000)
    x0, noise = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 1)) / 3
    t = jnp.array([5, 2000, 3990])

    def loss(bound):
        net = network if bound != "none" else lambda x, t: network(x, t)[..., :1]
        return Objective(chain, "epsilon", simple(), bound).at(net, x0, noise, t)

    simple_loss, one_term = loss("none"), loss("vlb") / 4000
    np.testing.assert_allclose(loss("hybrid") - simple_loss, 4 * one_term, rtol=1e-3)
    np.testing.assert_allclose(loss("hybrid_unscaled") - simple_loss, one_term, rtol=1e-3)


def test_the_hybrid_bound_does_not_move_the_mean():
    chain = process.linear(100)
    objective = Objective(chain, "epsilon", simple(), "hybrid")
    plain = Objective(chain, "epsilon", simple())
    x0, noise = jax.random.normal(jax.random.key(0), (2, 4, 2, 2, 1)) / 3
    t = jnp.array([0, 10, 50, 99])

    def both(shift):
        return jnp.sum(objective.at(lambda x, t: jnp.concatenate([x + shift, 0.3 * x], -1), x0, noise, t))

    def mean_only(shift):
        return jnp.sum(plain.at(lambda x, t: x + shift, x0, noise, t))

    def variance_only(value):
        return jnp.sum(objective.at(lambda x, t: jnp.concatenate([x, x + value], -1), x0, noise, t))

    np.testing.assert_allclose(jax.grad(both)(0.1), jax.grad(mean_only)(0.1), rtol=1e-5)
    assert abs(jax.grad(variance_only)(0.1)) > 1e-3


@pytest.mark.parametrize("schedule", CHAINS)
def test_bits_per_dimension_match_guided_diffusion(schedule):
    reference = {key.removeprefix(f"bpd/{schedule}/"): value for key, value in golden.load("guided-diffusion").items()}
    visited = golden.load("guided-diffusion")["respace/25"]
    bits = variational.bits_per_dimension(
        CHAINS[schedule],
        "epsilon",
        network,
        jnp.asarray(reference["x0"]),
        timesteps=visited,
        variance="learned_range",
        noise=jnp.asarray(reference["noise"]),
    )
    np.testing.assert_allclose(bits.total, reference["total_bpd"], rtol=1e-5)
    np.testing.assert_allclose(bits.prior, reference["prior_bpd"], rtol=1e-2, atol=1e-6)
    for ours, theirs in [(bits.terms, "vb"), (bits.denoised_error, "xstart_mse"), (bits.noise_error, "mse")]:
        np.testing.assert_allclose(ours[:, ::-1], reference[theirs], rtol=1e-3, atol=1e-5)


def test_posterior_table_matches_guided_diffusion():
    visited = golden.load("guided-diffusion")["respace/25"]
    for schedule, chain in CHAINS.items():
        posterior = variational.Posterior(variational.respaced(chain, visited))
        expected = golden.load("guided-diffusion")[f"schedule/{schedule}/posterior_log_variance_clipped"]
        np.testing.assert_allclose(posterior.log_variance, expected, rtol=1e-9)


def test_the_posterior_is_bayes_rule():
    """q(x_{t-1} | x_t, x_0) from the product of the two Gaussians q(x_t | x_{t-1}) q(x_{t-1} | x_0)."""
    chain = process.linear(20)
    t, x0, x_t = 7, 0.4, -0.3
    before, beta = chain.alphas_cumprod[t - 1], chain.betas[t]
    precision = (1 - beta) / beta + 1 / (1 - before)
    mean = (np.sqrt(1 - beta) * x_t / beta + np.sqrt(before) * x0 / (1 - before)) / precision
    posterior = variational.Posterior(chain)
    np.testing.assert_allclose(posterior.log_variance[t], -np.log(precision), rtol=1e-12)
    ours = posterior.mean(jnp.full((1, 1), x0), jnp.full((1, 1), x_t), jnp.array([t]))
    np.testing.assert_allclose(ours, mean, rtol=1e-5)


def test_the_decoder_is_a_distribution_over_the_256_values():
    values = jnp.arange(256) / 127.5 - 1
    for mean, deviation in [(0.0, 0.3), (0.95, 0.05), (-1.2, 0.5)]:
        probability = jnp.exp(variational.decoder_log_likelihood(values, mean, jnp.full(256, 2 * np.log(deviation))))
        np.testing.assert_allclose(probability.sum(), 1, atol=1e-4)
        assert abs((probability * values).sum() - np.clip(mean, -1, 1)) < 0.25


def test_gaussian_kl_matches_the_integral():
    grid = np.linspace(-12, 12, 20001)
    mean1, log_variance1, mean2, log_variance2 = 0.3, -0.5, -0.4, 0.7

    def log_density(mean, log_variance):
        return -0.5 * (np.log(2 * np.pi) + log_variance + (grid - mean) ** 2 / np.exp(log_variance))

    p, q = log_density(mean1, log_variance1), log_density(mean2, log_variance2)
    expected = np.trapezoid(np.exp(p) * (p - q), grid)
    np.testing.assert_allclose(variational.gaussian_kl(mean1, log_variance1, mean2, log_variance2), expected, rtol=1e-5)


def test_a_gaussian_model_of_gaussian_data_comes_close_to_its_entropy():
    """With the exact denoiser the bound is above the entropy of the uint8 data, by the coarseness of the last step."""
    deviation = 0.3
    chain = process.cosine(1000)
    x0 = jnp.round(deviation * jax.random.normal(jax.random.key(0), (64, 16)) * 127.5) / 127.5

    def exact(x, t):
        alpha, sigma = process.bcast(chain.alpha(t), x), process.bcast(chain.sigma(t), x)
        return alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2) * x

    bits = variational.bits_per_dimension(chain, "sample", exact, x0, clip=None, key=jax.random.key(1))
    entropy = 0.5 * np.log2(2 * np.pi * np.e * deviation**2) - np.log2(2 / 255)
    assert entropy - 0.05 < bits.total.mean() < entropy + 0.8
    # All but the decoder's term are exact, so they stay when the chain is cut there.
    assert bits.terms[:, 1:].sum(1).mean() < entropy


def test_the_bound_needs_noise():
    with pytest.raises(ValueError, match="give a key"):
        variational.bits_per_dimension(process.linear(3), "epsilon", network, jnp.zeros((1, 2, 2, 1)))
