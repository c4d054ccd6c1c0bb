"""Guidance against the formulas of its papers, and against a case with a known answer."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import guidance, prediction, process, samplers
from tests import golden

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


MEANS, WIDTHS, SHARES = jnp.array([-0.6, 0.1, 0.7]), jnp.array([0.2, 0.3, 0.1]), jnp.array([0.5, 0.2, 0.3])


def mixture(kind, chain, x, t):
    """Of pixels from a mixture of Gaussians: the exact prediction, those of its components, and log p(k | x, t)."""
    exact = isinstance(chain, process.DiscreteProcess)
    at = jnp.round(t).astype(int) if exact else t
    alpha, sigma = chain.alpha(at), chain.sigma(at)
    variance = alpha**2 * WIDTHS**2 + sigma**2
    apart = x[..., None] - alpha * MEANS
    log_share = jax.nn.log_softmax(jnp.log(SHARES) - 0.5 * jnp.log(variance) - 0.5 * apart**2 / variance)
    components = MEANS + alpha * WIDTHS**2 / variance * apart
    both = (jnp.exp(log_share) * components).sum(-1)
    raw = [prediction.from_denoised(kind, x0, x, alpha, sigma) for x0 in (both, *jnp.moveaxis(components, -1, 0))]
    return raw[0], raw[1:], log_share


@pytest.mark.parametrize("kind", prediction.PREDICTIONS)
@pytest.mark.parametrize(
    ("chain", "times"),
    [
        (CHAIN, (0.0, 100.0, 199.0)),
        (process.VPSDE(), (0.01, 0.5, 1.0)),
        (process.RectifiedFlow(), (10.0, 500.0, 990.0)),
    ],
    ids=["linear", "vp_sde", "rectified_flow"],
)
def test_an_exact_classifier_makes_the_score_of_its_class(kind, chain, times):
    """Bayes: grad log p(x | k) = grad log p(x) + grad log p(k | x), at every time and in every prediction."""
    with jax.enable_x64(True):
        x = jnp.linspace(-1.5, 1.5, 61)[:, None]
        for k in range(3):
            steered = guidance.classifier(
                lambda x, t: mixture(kind, chain, x, t)[0],
                lambda x, t, k=k: mixture(kind, chain, x, t)[2][..., k].sum(-1),
                1.0,
                chain,
                kind,
            )
            for t in map(jnp.float64, times):
                np.testing.assert_allclose(steered(x, t), mixture(kind, chain, x, t)[1][k], rtol=1e-6, atol=1e-8)


def test_tilted_steps_sample_the_class():
    """Algorithm 1 of the paper, where steps are short: an unconditional network and the exact classifier."""
    sampler = samplers.ddpm(CHAIN, "epsilon", 200, variance="fixed_small", clip=None)
    for k in (0, 2):
        tilt = guidance.classifier_gradient(lambda x, t, k=k: mixture("epsilon", CHAIN, x, t)[2][..., k].sum(-1), 1.0)
        x_T = jax.random.normal(jax.random.key(1), (4, 1000))
        x, _ = samplers.sample(
            sampler, lambda x, t: mixture("epsilon", CHAIN, x, t)[0], x_T, jax.random.key(2), tilt=tilt
        )
        np.testing.assert_allclose(x.mean(), MEANS[k], atol=0.03)
        np.testing.assert_allclose(x.std(), WIDTHS[k], atol=0.03)


def test_between_timesteps_the_noise_level_is_the_samplers():
    """A solver in noise levels asks for fractional times; a rounded level is off by 5 % at the clean end."""
    chain = process.linear()
    ratio = np.float64(0.02)
    time = chain.time_of(ratio)
    assert abs(time - round(time)) > 0.2
    one = guidance.classifier(lambda x, t: 0 * x, lambda x, t: x.sum(1), 1.0, chain, "epsilon")
    np.testing.assert_allclose(one(jnp.zeros((1, 1)), jnp.float32(time)), -ratio * chain.alpha_at(ratio), rtol=1e-4)


@pytest.mark.parametrize("chain", [process.cosine(zero_terminal_snr=True), process.RectifiedFlow()])
def test_pure_noise_has_no_class(chain):
    time = jnp.float32(999 if isinstance(chain, process.DiscreteProcess) else 1000)
    one = guidance.classifier(lambda x, t: x, lambda x, t: (x**2).sum(1), 1.0, chain, "v")
    np.testing.assert_array_equal(one(jnp.ones((1, 2)), time), 1.0)


CHAINS = {"linear": process.linear(), "cosine": process.cosine()}


def golden_network(chain):
    """The network of the golden (README.md there), with the fraction of its learned variance."""

    def network(x, t):
        alpha, sigma = chain.alpha(t.astype(int)), chain.sigma(t.astype(int))
        epsilon = sigma * x / (0.25 * alpha**2 + sigma**2) + 0.1 * jnp.sin(3 * x)
        return jnp.concatenate([epsilon, jnp.sin(2 * x + 0.1)], -1)

    return network


def golden_log_probability(x, t, y):
    logits = [20 * jnp.sin(x * k / 2 + t / 1000).mean((1, 2, 3)) for k in range(1, 6)]
    return jnp.take_along_axis(jax.nn.log_softmax(jnp.stack(logits, -1)), y[:, None], 1)[:, 0]


def golden_sample(schedule, sampler, clip=None):
    recorded, chain = golden.load("guided-classifier-sampling"), CHAINS[schedule]
    y, scale = jnp.asarray(recorded["y"]), recorded["scale"]
    log_probability = functools.partial(golden_log_probability, y=y)
    network, tilt = golden_network(chain), None
    predict = network if sampler.learned_variance else lambda x, t: network(x, t)[..., :3]
    if sampler.has_variance:
        tilt = guidance.classifier_gradient(log_probability, scale)
    else:
        predict = guidance.classifier(predict, log_probability, scale, chain, "epsilon", clip)
    x_T = jnp.asarray(recorded["x_T"])
    return samplers.sample(sampler, predict, x_T, noise=recorded["noise"], tilt=tilt)[0], recorded


@pytest.mark.parametrize("schedule", CHAINS)
@pytest.mark.parametrize("variance", ["learned_range", "fixed_small", "fixed_large"])
def test_the_mean_of_a_step_moves_as_in_guided_diffusion(schedule, variance):
    sampler = samplers.ddpm(CHAINS[schedule], "epsilon", respacing="10", variance=variance)
    x, recorded = golden_sample(schedule, sampler)
    np.testing.assert_allclose(x, recorded[f"{schedule}/ddpm/{variance}"], atol=2e-5)
    if variance == "learned_range":
        assert np.abs(x - recorded[f"{schedule}/ddpm/{variance}/unguided"]).max() > 0.1


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_score_moves_as_in_guided_diffusion(clip, eta):
    sampler = samplers.ddim(CHAINS["linear"], "epsilon", respacing="10", eta=eta)
    x, recorded = golden_sample("linear", sampler, clip)
    expected = recorded[f"linear/ddim/{'free' if clip is None else 'clip'}/eta{eta:g}"]
    np.testing.assert_allclose(x, expected, atol=2e-5 * np.abs(expected).max())


def test_only_gaussian_steps_can_be_tilted():
    for sampler in (samplers.ddim(CHAIN, "epsilon", 4), samplers.adaptive(process.VPSDE(), "epsilon")):
        with pytest.raises(ValueError, match="tilt needs a sampler whose steps are Gaussians"):
            samplers.sample(sampler, lambda x, t: x, jnp.zeros((1, 2)), tilt=lambda x, t: x)


def test_a_classifier_needs_a_network_that_sees_x():
    with pytest.raises(ValueError, match="prediction is 'edm'"):
        guidance.classifier(lambda x, t: x, lambda x, t: x.sum(1), 1.0, process.EDM(), "edm")
