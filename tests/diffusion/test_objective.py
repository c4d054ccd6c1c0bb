"""The training objective: what it asks of the network, how it draws, how it weighs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import preconditioning, prediction, process
from diffusion_jax.diffusion.objective import Objective
from diffusion_jax.diffusion.weighting import edm, min_snr, p2, simple, snr
from tests import golden

CHAIN = process.linear(100)
KEYS = jax.random.split(jax.random.key(0), 8)
X0 = jnp.linspace(-1, 1, 8 * 4).reshape(8, 2, 2, 1)


def draw_and_measure(objective, network, x0, keys):
    draws = objective.draw(keys, x0)
    return objective.at(network, x0, draws.noise, draws.time)


def perfect_network(kind):
    """Knows x0, so its output must be the target whatever noise was drawn."""

    def network(x, t):
        alpha, sigma = (process.bcast(f(t), x) for f in (CHAIN.alpha, CHAIN.sigma))
        return prediction.from_denoised(kind, X0, x, alpha, sigma)

    return network


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v", "velocity"])
def test_the_target_is_what_the_prediction_means(kind):
    losses = draw_and_measure(Objective(CHAIN, kind, simple()), perfect_network(kind), X0, KEYS)
    np.testing.assert_allclose(losses, 0, atol=1e-5)


def test_l_simple_of_a_silent_network_is_the_noise_power():
    x0 = jnp.zeros((512, 4, 4, 1))
    keys = jax.random.split(jax.random.key(1), 512)
    objective = Objective(CHAIN, "epsilon", simple())
    losses = draw_and_measure(objective, lambda x, t: jnp.zeros_like(x), x0, keys)
    np.testing.assert_allclose(losses.mean(), 1, atol=0.05)
    assert losses.shape == (512,)
    # Times are uniform, and reported as quantiles.
    draws = objective.draw(keys, x0)
    np.testing.assert_allclose(np.histogram(draws.quantile, 4, (0, 1))[0] / 512, 0.25, atol=0.07)
    np.testing.assert_array_equal(draws.time, CHAIN.time_at(draws.quantile))
    np.testing.assert_array_equal(draws.importance, 1)


def test_examples_draw_from_their_own_keys():
    objective = Objective(CHAIN, "epsilon", simple())
    network = perfect_network("sample")  # any fixed network with a loss that depends on the draw

    def losses(select):
        def shown(x, t):
            return jnp.tanh(x)

        return draw_and_measure(objective, shown, X0[select], KEYS[select])

    whole = losses(jnp.arange(8))
    parts = jnp.concatenate([losses(jnp.array([0, 1, 2])), losses(jnp.arange(3, 8))])
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    assert len(np.unique(whole)) == 8
    assert network(X0, jnp.zeros(8, int)).shape == X0.shape


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v"])
def test_weightings_mean_the_same_in_every_prediction(kind):
    """min-SNR weighs the error in x_0 by min(SNR, gamma), P2 the error in epsilon by 1 / (k + SNR)^gamma."""
    log_snr = jnp.array([-3.0, 0.0, 1.0, 4.0])
    ratio = np.exp(log_snr)
    alpha, sigma = np.sqrt(ratio / (1 + ratio)), np.sqrt(1 / (1 + ratio))
    _, on_output = prediction.denoised_coefficients(kind, alpha, sigma)
    as_denoised = {"epsilon": 1 / ratio, "sample": 1.0, "v": 1 / (1 + ratio)}[kind]
    np.testing.assert_allclose(min_snr(5.0)(log_snr, on_output), np.minimum(ratio, 5) * as_denoised, rtol=1e-5)
    as_epsilon = {"epsilon": 1.0, "sample": ratio, "v": ratio / (1 + ratio)}[kind]
    np.testing.assert_allclose(p2(1.0, 0.5)(log_snr, on_output), as_epsilon / (1 + ratio) ** 0.5, rtol=1e-5)
    np.testing.assert_allclose(snr()(log_snr, on_output), as_epsilon, rtol=1e-5)


def test_edm_weights_its_own_output_evenly():
    """Karras et al. 2022, eq. 8 and table 1: lambda(sigma) c_out(sigma)^2 = 1."""
    sigma = jnp.array([0.01, 0.5, 20.0])
    call = prediction.interface("edm", sigma, jnp.ones(3), sigma)
    np.testing.assert_allclose(edm()(-2 * jnp.log(sigma), call.on_output), 1, rtol=1e-5)


def noise_level_of(kind, draws):
    """The noise levels that EDM's three losses take from a normal or a uniform draw."""
    if kind == "edm":
        return np.exp(-1.2 + 1.2 * draws["edm/normal"])
    if kind == "ve":
        return 0.02 * (100 / 0.02) ** draws["ve/uniform"]
    return preconditioning.vp_sigma(1 + draws["vp/uniform"] * (1e-5 - 1))


@pytest.mark.parametrize(("kind", "weighting"), [("edm", edm()), ("ve", snr()), ("vp", snr())])
def test_losses_of_edm(kind, weighting):
    """The released EDM, VE and VP losses with the golden's denoiser 0.8 x / (1 + s^2) + 0.05 sin(3 x)."""
    reference = golden.load("edm-losses")
    sigma = noise_level_of(kind, reference).astype(np.float32)

    def network(x, s):
        s = process.bcast(s, x)
        return 0.8 * x / (1 + s**2) + 0.05 * jnp.sin(3 * x)

    objective = Objective(process.EDM(), "sample", weighting)
    loss = objective.at(network, *(jnp.asarray(reference[f"{kind}/{name}"]) for name in ("images", "noise")), sigma)
    np.testing.assert_allclose(loss, reference[f"{kind}/loss"].mean((1, 2, 3)), rtol=1e-5)


def test_a_preconditioned_network_and_its_denoiser_have_the_same_loss():
    sigma = jnp.array([0.05, 0.5, 3.0, 0.2, 9.0, 1.0, 0.7, 30.0])
    noise = jax.random.normal(jax.random.key(3), X0.shape)

    def raw(x, c_noise):
        return jnp.tanh(x + process.bcast(c_noise, x))

    def denoiser(x, t):
        call = prediction.interface("edm", t, jnp.ones_like(t), t)
        output = raw(process.bcast(call.input_scale, x) * x, call.timestep)
        return process.bcast(call.on_x, x) * x + process.bcast(call.on_output, x) * output

    inner = Objective(process.EDM(), "edm", edm()).at(raw, X0, noise, sigma)
    outer = Objective(process.EDM(), "sample", edm()).at(denoiser, X0, noise, sigma)
    np.testing.assert_allclose(inner, outer, rtol=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prediction": "eps"}, "prediction is 'eps'"),
        ({"bound": "kl"}, "bound is 'kl'"),
        ({"process": process.EDM(), "bound": "vlb"}, "needs a discrete process"),
    ],
)
def test_impossible_objectives_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Objective(**{"process": CHAIN, "prediction": "epsilon", "weighting": simple(), **fields})
