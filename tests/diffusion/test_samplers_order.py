"""Every solver against closed forms: its order of accuracy on a Gaussian, its moments on a mixture."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import process, samplers

MEAN, DEVIATION = 0.3, 0.5


def gaussian(chain):
    """The exact estimate of x_0 for data N(MEAN, DEVIATION^2)."""

    def predict(x, t):
        alpha, sigma = chain.alpha(t), chain.sigma(t)
        return MEAN + alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2) * (x - alpha * MEAN)

    return predict


def exact_flow(x, start, end):
    """The probability-flow ODE from (alpha, sigma) to another, which keeps the quantile of the marginal."""
    spread = [np.sqrt(alpha**2 * DEVIATION**2 + sigma**2) for alpha, sigma in (start, end)]
    return end[0] * MEAN + (x - start[0] * MEAN) * spread[1] / spread[0]


def error(sampler, chain, start, end):
    with jax.enable_x64(True):
        x_T = jnp.array([[-1.5], [-0.2], [0.8], [2.0]]) * sampler.init_noise_sigma
        x, _ = _run(chain)(sampler, x_T)
        return float(np.abs(x - exact_flow(np.asarray(x_T), start, end)).max())


@functools.cache
def _run(chain):
    return jax.jit(lambda sampler, x: samplers.sample(sampler, gaussian(chain), x, return_trajectory=False))


EDM, FLOW, VP = process.EDM(sigma_min=0.05, sigma_max=20.0), process.RectifiedFlow(time_scale=1.0), process.VPSDE()
LOG, KARRAS = {"spacing_rule": "log_snr"}, {"spacing_rule": "karras"}
# (solver, options, process, points, order). On points that are equal in log SNR the multistep solvers show the order of
# their formula, because the low order of their first steps is spent where x_0 hardly changes.
ORDERS = [
    ("euler", KARRAS, EDM, 40, 1),
    ("euler", {"spacing_rule": "linspace"}, FLOW, 40, 1),
    ("heun", KARRAS, EDM, 40, 2),
    ("heun", LOG, VP, 40, 2),
    ("heun", {"spacing_rule": "linspace"}, FLOW, 40, 2),
    ("dpmpp", {"order": 1} | LOG, VP, 40, 1),
    ("dpmpp", {"order": 2} | LOG, EDM, 40, 2),
    ("dpmpp", {"order": 2, "variant": "heun"} | LOG, VP, 40, 2),
    # As in the authors' code, the curvature term of 3M lacks a factor 2: it is of second order after all.
    ("dpmpp", {"order": 3} | LOG, VP, 40, 2),
    ("dpmpp_singlestep", {"order": 2, "lower_order_final": False} | LOG, EDM, 40, 2),
    ("dpmpp_singlestep", {"order": 3, "lower_order_final": False} | LOG, VP, 39, 3),
    ("unipc", {"order": 1, "lower_order_final": False} | LOG, EDM, 40, 2),
    ("unipc", {"order": 2, "lower_order_final": False} | LOG, EDM, 40, 3),
    ("unipc", {"order": 2, "variant": "bh1", "lower_order_final": False} | LOG, VP, 40, 3),
    ("deis", {"order": 2} | LOG, EDM, 40, 2),
    ("deis", {"order": 3} | LOG, EDM, 40, 3),
    ("lms", {"order": 2} | LOG, EDM, 40, 2),
    ("lms", {"order": 3} | LOG, VP, 80, 3),
    ("ipndm", {"order": 2} | KARRAS, EDM, 40, 2),
    ("ipndm", {"order": 4} | KARRAS, EDM, 80, 2),
    ("plms", LOG, EDM, 80, 2),
]


@pytest.mark.parametrize(("name", "options", "chain", "num_steps", "order"), ORDERS)
def test_order_of_accuracy(name, options, chain, num_steps, order):
    if options["spacing_rule"] in ("karras", "log_snr"):
        options = {"sigma_min": 0.05, "sigma_max": 20.0} | options
        ratios = np.float64(options["sigma_max"]), np.float64(options["sigma_min"])
        start, end = ((float(chain.alpha_at(ratio)), float(ratio * chain.alpha_at(ratio))) for ratio in ratios)
    else:
        start, end = ((float(chain.alpha(t)), float(chain.sigma(t))) for t in (chain.t_max, chain.t_end))
    build = functools.partial(samplers.SAMPLERS[name], chain, "sample", denoise_to_zero=False, **options)
    errors = [error(build(num_steps * factor), chain, start, end) for factor in (1, 2, 4)]
    slope = np.log2(errors[0] / errors[2]) / 2
    assert errors[0] < 0.05
    assert order - 0.3 < slope < order + 0.5


# Of the general sampler the columns of table 1 of Karras et al. 2022, with Heun's method unless another is named.
TO_ZERO = [
    ("edm", {}, 2),
    ("edm_ablation", {"solver": "euler"}, 1),
    ("edm_ablation", {"solver": "heun"}, 2),
    ("edm_ablation", {"solver": "heun", "alpha": 0.5}, 2),
    ("edm_ablation", {"discretization": "vp", "schedule": "vp", "scaling": "vp"}, 2),
    ("edm_ablation", {"discretization": "ve", "schedule": "ve"}, 2),
]


@pytest.mark.parametrize(("name", "options", "order"), TO_ZERO)
def test_order_of_the_edm_samplers(name, options, order):
    """They end without noise, by a step of first order that begins so near to there that it does not matter."""
    low, high = 0.0005, 20.0
    scale = (1 + high**2) ** -0.5 if options.get("scaling") == "vp" else 1.0
    build = functools.partial(samplers.SAMPLERS[name], EDM, "sample", sigma_min=low, sigma_max=high, **options)
    errors = [error(build(steps), EDM, (scale, high * scale), (1.0, 0.0)) for steps in (80, 160, 320)]
    assert errors[0] < 0.05
    assert order - 0.3 < np.log2(errors[0] / errors[2]) / 2 < order + 0.5


def test_order_of_ddim():
    """Euler's method in sigma / alpha (Song et al. 2021, section 4.3): of first order."""
    chain = process.linear(3200, 3e-5, 6e-3)
    alphas, sigmas = chain.alpha(np.arange(3200)), chain.sigma(np.arange(3200))

    def predict(x, t):
        at = types.SimpleNamespace(alpha=lambda t: jnp.asarray(alphas)[t], sigma=lambda t: jnp.asarray(sigmas)[t])
        return gaussian(at)(x, t.astype(int))

    errors = []
    with jax.enable_x64(True):
        x_T = jnp.array([[-1.5], [-0.2], [0.8], [2.0]])
        for steps in (80, 160, 320):
            sampler = samplers.ddim(chain, "sample", steps, spacing_rule="trailing")
            x, _ = samplers.sample(sampler, predict, x_T, return_trajectory=False)
            errors.append(np.abs(x - exact_flow(np.asarray(x_T), (alphas[-1], sigmas[-1]), (1.0, 0.0))).max())
    assert errors[0] < 0.05
    assert 0.7 < np.log2(errors[0] / errors[2]) / 2 < 1.5


WEIGHTS, CENTRES, WIDTH = np.array([0.3, 0.7]), np.array([-0.6, 0.5]), 0.15


def mixture(chain, x, t):
    """The exact estimate of x_0 where every pixel is drawn from a mixture of two Gaussians."""
    x = x[..., None]
    alpha, sigma = chain.alpha(t), chain.sigma(t)
    variance = alpha**2 * WIDTH**2 + sigma**2
    logits = np.log(WEIGHTS) - (x - alpha * CENTRES) ** 2 / (2 * variance)
    estimates = CENTRES + alpha * WIDTH**2 / variance * (x - alpha * CENTRES)
    return jnp.sum(jax.nn.softmax(logits, axis=-1) * estimates, axis=-1)


DDPM, SDE = process.linear(200, 5e-4, 0.1), process.VPSDE()
LEVELS = process.EDM(sigma_max=20.0)


@pytest.mark.parametrize(
    ("name", "options", "chain", "num_steps"),
    [
        ("ddpm", {"clip": None, "variance": "fixed_small"}, DDPM, 200),
        ("ddim", {"eta": 0.0}, DDPM, 200),
        ("ddim", {"eta": 1.0}, DDPM, 200),
        ("euler_ancestral", {}, LEVELS, 150),
        ("edm", {"sigma_max": 20.0, "s_churn": 20.0}, LEVELS, 75),
        ("dpmpp_sde", {}, LEVELS, 60),
        ("dpmpp_sde", {"variant": "heun", "spacing_rule": "log_snr"}, SDE, 60),
        ("predictor_corrector", {"snr": 0.1}, SDE, 200),
        ("predictor_corrector", {"snr": 0.16}, process.VESDE(sigma_max=10.0), 200),
        ("sde", {"last_step_size": 0.01}, process.RectifiedFlow(), 250),
        ("sde", {"solver": "heun", "diffusion_form": "sbdm", "last_step_size": 0.005}, SDE, 100),
        ("heun", {}, process.RectifiedFlow(shift=2.0), 60),
        ("dpmpp", {"order": 3}, process.RectifiedFlow(), 60),
        ("unipc", {"order": 3}, process.SubVPSDE(), 60),
    ],
)
def test_moments_of_a_mixture(name, options, chain, num_steps):
    sampler = samplers.SAMPLERS[name](chain, "sample", num_steps, **options)
    if isinstance(chain, process.DiscreteProcess):
        alphas, sigmas = (jnp.asarray(f(np.arange(chain.num_timesteps))) for f in (chain.alpha, chain.sigma))
        tables = types.SimpleNamespace(alpha=lambda t: alphas[t.astype(int)], sigma=lambda t: sigmas[t.astype(int)])
        predict = functools.partial(mixture, tables)
    else:
        predict = functools.partial(mixture, chain)
    # Images of many pixels: a corrector's step size is a ratio of norms.
    keys = jax.random.split(jax.random.key(0), 32)
    x_T = samplers.initial_noise(sampler, keys, (256,))
    x, _ = jax.jit(lambda x, keys: samplers.sample(sampler, predict, x, key=keys, return_trajectory=False))(x_T, keys)
    mean = WEIGHTS @ CENTRES
    variance = WEIGHTS @ (CENTRES**2 + WIDTH**2) - mean**2
    np.testing.assert_allclose(x.mean(), mean, atol=0.025)
    np.testing.assert_allclose(x.std(), np.sqrt(variance), atol=0.02)
    np.testing.assert_allclose((x < 0).mean(), WEIGHTS[0], atol=0.025)
    np.testing.assert_allclose(x[x > 0.1].std(), WIDTH, atol=0.015)


def test_the_langevin_step_depends_on_each_image_alone():
    """An image's corrector sees its own norms, and a score of half the size gets a step of four times the size."""
    chain = process.VESDE()
    sampler = samplers.predictor_corrector(chain, "sample", 3, snr=0.2)
    keys = jax.random.split(jax.random.key(3), 4)
    x_T = samplers.initial_noise(sampler, keys, (6,))

    def predict(x, t):
        return 0.1 * jnp.tanh(x)

    whole, _ = samplers.sample(sampler, predict, x_T, key=keys)
    part, _ = samplers.sample(sampler, predict, x_T[1:2], key=keys[1:2])
    np.testing.assert_allclose(whole[1:2], part, rtol=1e-5)

    # The first row is a corrector at sigma_max. x_0 = x - q x stands for a score of -q x / sigma^2.
    def first_step(q):
        _, states = samplers.sample(sampler, lambda x, t: (1 - q) * x, x_T, noise=noise)
        return states[1] - states[0]

    noise = np.ones((sampler.num_steps, *x_T.shape), np.float32)
    score = -np.asarray(x_T) / 50.0**2
    size = 2 * (0.2 * np.sqrt(6) / np.linalg.norm(score, axis=1, keepdims=True)) ** 2
    shrink = 1.0  # of VE
    np.testing.assert_allclose(first_step(1.0), shrink**2 * size * score + np.sqrt(2 * size), rtol=1e-4)
    np.testing.assert_allclose(first_step(0.5), 4 * size * score / 2 + 2 * np.sqrt(2 * size), rtol=1e-4)


@pytest.mark.parametrize("chain", [process.RectifiedFlow(), EDM], ids=["flow", "edm"])
def test_the_adaptive_solver_keeps_its_tolerance(chain):
    sampler = samplers.adaptive(chain, "sample", 5, denoise_to_zero=False)
    x_T = jnp.array([[-1.5], [-0.2], [0.8], [2.0]]) * sampler.init_noise_sigma
    x, states, evaluations = sampler.solve_counting(gaussian(chain), x_T)
    start, end = ((float(chain.alpha(t)), float(chain.sigma(t))) for t in (chain.t_max, chain.t_end))
    np.testing.assert_allclose(x, exact_flow(np.asarray(x_T), start, end), atol=5e-4)
    np.testing.assert_array_equal(states[0], x_T)
    assert states.shape == (6, 4, 1) and 20 < evaluations < 400
    same, kept = samplers.sample(sampler, gaussian(chain), x_T, trajectory_stride=2)
    np.testing.assert_allclose(same, x, atol=1e-5)
    assert kept.shape == (4, 4, 1)


def test_the_adaptive_solver_needs_continuous_time():
    with pytest.raises(ValueError, match="continuous time"):
        samplers.adaptive(process.linear(), "epsilon")
    for wrong in ({"rtol": -1e-5}, {"rtol": 0.0, "atol": 0.0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match=r"rtol is|max_steps is 0"):
            samplers.adaptive(EDM, "sample", **wrong)
