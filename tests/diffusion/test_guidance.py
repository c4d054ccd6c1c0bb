"""Guidance against the formulas of its papers, and against a case with a known answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import guidance, prediction, process, samplers

X = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
T = jnp.float32(10)


def conditioned(x, t, condition):
    return jnp.tanh(x) + condition[:, None, None, None] * (1 + x)


def guided(scale, **options):
    condition, null = jnp.array([1.0, 2.0, 3.0]), jnp.zeros(3)
    return guidance.classifier_free(conditioned, condition, null, scale, **options)(X, T)


def test_classifier_free_is_the_papers_extrapolation():
    with_condition, without = guided(1.0), guided(0.0)
    np.testing.assert_allclose(with_condition, conditioned(X, T, jnp.array([1.0, 2.0, 3.0])), rtol=1e-6)
    np.testing.assert_allclose(without, jnp.tanh(X), rtol=1e-6)
    # (1 + w) conditional - w unconditional
    np.testing.assert_allclose(guided(3.5), 3.5 * with_condition - 2.5 * without, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(guided(jnp.array([0.0, 1.0, 3.5]))[2], guided(3.5)[2], rtol=1e-6)


def test_conditions_may_be_trees():
    def predict(x, t, condition):
        return conditioned(x, t, condition["text"]) * condition["pooled"][:, None, None, None]

    one = {"text": jnp.array([1.0, 2.0, 3.0]), "pooled": jnp.full(3, 2.0)}
    null = {"text": jnp.zeros(3), "pooled": jnp.full(3, 0.5)}
    out = guidance.classifier_free(predict, one, null, 2.0)(X, T)
    np.testing.assert_allclose(out, 2 * predict(X, T, one) - predict(X, T, null), rtol=1e-4, atol=1e-5)


def test_unguided_channels_are_the_conditions():
    out = guided(4.0, channels=1)
    np.testing.assert_allclose(out[..., :1], guided(4.0)[..., :1], rtol=1e-6)
    np.testing.assert_allclose(out[..., 1:], guided(1.0)[..., 1:], rtol=1e-6)


@pytest.mark.parametrize(("interval", "acts"), [((5, 15), True), ((10, 10), True), ((11, 20), False), ((0, 9), False)])
def test_guidance_acts_in_its_interval_only(interval, acts):
    np.testing.assert_allclose(guided(4.0, interval=interval), guided(4.0 if acts else 1.0), rtol=1e-6)


def test_rescaling_restores_the_standard_deviation():
    plain, target = guided(6.0), guided(1.0)
    full, half = guided(6.0, rescale=1.0), guided(6.0, rescale=0.5)
    axes = (1, 2, 3)
    assert (plain.std(axes) > 1.5 * target.std(axes)).all()
    np.testing.assert_allclose(full.std(axes), target.std(axes), rtol=1e-5)
    np.testing.assert_allclose(half, 0.5 * full + 0.5 * plain, rtol=1e-5, atol=1e-6)


def test_autoguidance_moves_away_from_the_weak_network():
    good, weak = (lambda x, t: jnp.tanh(x)), (lambda x, t: 0.5 * x)
    out = guidance.autoguidance(good, weak, 2.5)(X, T)
    np.testing.assert_allclose(out, 0.5 * X + 2.5 * (jnp.tanh(X) - 0.5 * X), rtol=1e-5, atol=1e-6)
    aside = guidance.autoguidance(good, weak, 2.5, interval=(11, 12))(X, T)
    np.testing.assert_allclose(aside, jnp.tanh(X), rtol=1e-5, atol=1e-6)


CHAIN = process.linear(200, 5e-4, 0.1)
CENTRE, WIDTH, SLOPE = 0.2, 0.3, 4.0


def unguided(kind, x, t):
    """The exact prediction for pixels drawn from N(CENTRE, WIDTH^2)."""
    alpha, sigma = CHAIN.alpha(t.astype(int)), CHAIN.sigma(t.astype(int))
    x0 = CENTRE + alpha * WIDTH**2 / (alpha**2 * WIDTH**2 + sigma**2) * (x - alpha * CENTRE)
    return prediction.from_denoised(kind, x0, x, alpha, sigma)


@pytest.mark.parametrize("kind", prediction.PREDICTIONS)
def test_a_classifier_samples_from_the_tilted_distribution(kind):
    """p(y | x_0) proportional to exp(SLOPE x_0) moves a Gaussian by SLOPE WIDTH^2, and so must its exact guidance."""

    def log_probability(x, t):
        # log E[exp(SLOPE x_0) | x] = SLOPE E[x_0 | x] + constant, as the posterior's variance does not depend on x.
        return SLOPE * unguided("sample", x, t).sum(axis=(1,))

    def predict(x, t):
        return unguided(kind, x, t)

    sampler = samplers.ddim(CHAIN, kind, 200, eta=0.0)
    steered = guidance.classifier(predict, log_probability, 1.0, CHAIN, kind)
    x_T = jax.random.normal(jax.random.key(1), (4, 1000))
    x, _ = samplers.sample(sampler, steered, x_T, return_trajectory=False)
    np.testing.assert_allclose(x.mean(), CENTRE + SLOPE * WIDTH**2, atol=0.02)
    np.testing.assert_allclose(x.std(), WIDTH, atol=0.02)


def test_a_classifier_needs_a_network_that_sees_x():
    with pytest.raises(ValueError, match="prediction is 'edm'"):
        guidance.classifier(lambda x, t: x, lambda x, t: x.sum(1), 1.0, process.EDM(), "edm")
