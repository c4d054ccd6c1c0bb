"""The training objective: what it asks of the network, how it draws, how it weighs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import prediction, process
from diffusion_jax.diffusion.objective import Objective, min_snr, p2, simple

CHAIN = process.linear(100)
KEYS = jax.random.split(jax.random.key(0), 8)
X0 = jnp.linspace(-1, 1, 8 * 4).reshape(8, 2, 2, 1)


def perfect_network(kind):
    """Knows x0, so its output must be the target whatever noise was drawn."""

    def network(x, t):
        alpha, sigma = (process.bcast(f(t), x) for f in (CHAIN.alpha, CHAIN.sigma))
        return prediction.from_denoised(kind, X0, x, alpha, sigma)

    return network


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v", "velocity"])
def test_the_target_is_what_the_prediction_means(kind):
    terms = Objective(CHAIN, kind, simple())(perfect_network(kind), X0, KEYS)
    np.testing.assert_allclose(terms.loss, 0, atol=1e-5)


def test_l_simple_of_a_silent_network_is_the_noise_power():
    x0 = jnp.zeros((512, 4, 4, 1))
    keys = jax.random.split(jax.random.key(1), 512)
    terms = Objective(CHAIN, "epsilon", simple())(lambda x, t: jnp.zeros_like(x), x0, keys)
    np.testing.assert_allclose(terms.loss.mean(), 1, atol=0.05)
    assert terms.loss.shape == (512,)
    # Times are uniform, and reported as quantiles.
    np.testing.assert_allclose(np.histogram(terms.quantile, 4, (0, 1))[0] / 512, 0.25, atol=0.07)


def test_examples_draw_from_their_own_keys():
    objective = Objective(CHAIN, "epsilon", simple())
    network = perfect_network("sample")  # any fixed network with a loss that depends on the draw

    def losses(select):
        def shown(x, t):
            return jnp.tanh(x)

        return objective(shown, X0[select], KEYS[select]).loss

    whole = losses(jnp.arange(8))
    parts = jnp.concatenate([losses(jnp.array([0, 1, 2])), losses(jnp.arange(3, 8))])
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    assert len(np.unique(whole)) == 8
    assert network(X0, jnp.zeros(8, int)).shape == X0.shape


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v"])
def test_weightings_mean_the_same_in_every_prediction(kind):
    """min-SNR weighs the error in x_0 by min(SNR, gamma), P2 the error in epsilon by 1 / (k + SNR)^gamma."""
    log_snr = jnp.array([-3.0, 0.0, 1.0, 4.0])
    snr = np.exp(log_snr)
    as_denoised = {"epsilon": 1 / snr, "sample": 1.0, "v": 1 / (1 + snr)}[kind]
    np.testing.assert_allclose(min_snr(5.0)(log_snr, kind), np.minimum(snr, 5) * as_denoised, rtol=1e-5)
    as_epsilon = {"epsilon": 1.0, "sample": snr, "v": snr / (1 + snr)}[kind]
    np.testing.assert_allclose(p2(1.0, 0.5)(log_snr, kind), as_epsilon / (1 + snr) ** 0.5, rtol=1e-5)


def test_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="prediction is 'eps'"):
        Objective(CHAIN, "eps", simple())
