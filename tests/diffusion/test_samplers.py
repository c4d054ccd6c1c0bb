"""The samplers against diffusers' trajectories, and against what must hold whatever the network is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import process, samplers
from tests import golden

PREDICTION = {"epsilon": "epsilon", "sample": "sample", "v_prediction": "v"}
DISCRETE = [name for name in golden.config("samplers", "schedulers.json") if name.startswith(("ddpm-", "ddim-"))]


def toy_network(x, t):
    """The network of the goldens (goldens/README.md)."""
    return jnp.tanh(0.7 * x + 0.3 * jnp.sin(t / 1000 * 6.283185307179586) - 0.05)


def sampler_of(name: str, num_steps: int) -> samplers.Sampler:
    """The diffusers scheduler `name` of the goldens, written with our own constructors."""
    entry = golden.config("samplers", "schedulers.json")[name]
    config = entry["config"]
    betas = {"linear": process.linear, "scaled_linear": process.scaled_linear}.get(config["beta_schedule"])
    zero_snr = config["rescale_betas_zero_snr"]
    if betas is None:
        chain = process.cosine(config["num_train_timesteps"], zero_terminal_snr=zero_snr)
    else:
        chain = betas(config["num_train_timesteps"], config["beta_start"], config["beta_end"], zero_snr)
    shared = {
        "spacing_rule": config["timestep_spacing"],
        "offset": config["steps_offset"],
        "clip": config["clip_sample_range"] if config["clip_sample"] else None,
    }
    if shared["spacing_rule"] == "trailing":
        shared["offset"] = 0
    prediction = PREDICTION[config["prediction_type"]]
    if entry["scheduler"] == "DDPMScheduler":
        return samplers.ddpm(chain, prediction, num_steps, variance=config["variance_type"], **shared)
    final = 1.0 if config["set_alpha_to_one"] else float(chain.alphas_cumprod[0])
    eta = entry.get("step_arguments", {}).get("eta", 0.0)
    return samplers.ddim(chain, prediction, num_steps, eta=eta, final_alpha_cumprod=final, **shared)


@pytest.mark.parametrize("num_steps", [10, 25])
@pytest.mark.parametrize("name", DISCRETE)
def test_trajectory_matches_diffusers(name, num_steps):
    reference = golden.load("samplers")
    trajectory = reference[f"{name}/{num_steps}/trajectory"]
    sampler = sampler_of(name, num_steps)
    np.testing.assert_array_equal(sampler.timesteps, reference[f"{name}/{num_steps}/timesteps"])
    noise = reference.get(f"{name}/{num_steps}/noise")
    assert sampler.stochastic == (noise is not None)
    x, ours = samplers.sample(sampler, toy_network, jnp.asarray(trajectory[0]), noise=noise)
    np.testing.assert_allclose(ours, trajectory, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(x, ours[-1])


def test_every_discrete_golden_is_covered():
    assert len(DISCRETE) == 15


def test_image_is_a_function_of_its_own_key_alone():
    sampler = samplers.ddpm(process.linear(), "epsilon", 20)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(3), jnp.arange(6))

    def run(keys):
        start = samplers.initial_noise(sampler, keys, (4, 4, 1))
        return samplers.sample(sampler, toy_network, start, key=keys, return_trajectory=False)[0]

    whole = run(keys)
    parts = jnp.concatenate([run(keys[:1]), run(keys[1:4]), run(keys[4:])])
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    assert np.abs(whole[0] - whole[1]).max() > 0.01


def test_one_key_is_folded_for_each_image():
    sampler = samplers.ddpm(process.linear(), "epsilon", 5)
    key = jax.random.key(0)
    start = jnp.zeros((3, 2, 2, 1))
    folded = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(3))
    one, _ = samplers.sample(sampler, toy_network, start, key=key)
    many, _ = samplers.sample(sampler, toy_network, start, key=folded)
    np.testing.assert_array_equal(one, many)


def test_start_and_steps_draw_different_noise():
    sampler = samplers.ddpm(process.linear(), "epsilon", 3)
    keys = jax.random.split(jax.random.key(1), 2)
    start = samplers.initial_noise(sampler, keys, (8, 8, 1))
    for step in range(3):
        drawn = jax.vmap(lambda k, step=step: jax.random.normal(jax.random.fold_in(k, step), (8, 8, 1)))(keys)
        assert abs(np.corrcoef(start.ravel(), drawn.ravel())[0, 1]) < 0.3


@pytest.mark.parametrize("stride", [1, 2, 4, 7])
def test_trajectory_stride_keeps_the_right_states(stride):
    sampler = samplers.ddim(process.linear(), "epsilon", 10)
    start = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    x, every = samplers.sample(sampler, toy_network, start)
    same, some = samplers.sample(sampler, toy_network, start, trajectory_stride=stride)
    kept = sorted({0, 10, *range(0, 11, stride)})
    np.testing.assert_array_equal(some, every[np.array(kept)])
    np.testing.assert_array_equal(x, same)


def test_stochastic_sampler_refuses_to_run_without_noise():
    sampler = samplers.ddpm(process.linear(), "epsilon", 5)
    with pytest.raises(ValueError, match="give a key"):
        samplers.sample(sampler, toy_network, jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match="noise has shape"):
        samplers.sample(sampler, toy_network, jnp.zeros((1, 2, 2, 1)), noise=jnp.zeros((4, 1, 2, 2, 1)))


def test_ddim_with_eta_1_and_every_step_is_ddpm():
    chain = process.cosine(50)
    ddim = samplers.ddim(chain, "v", 50, eta=1.0, clip=None)
    ddpm = samplers.ddpm(chain, "v", 50, variance="fixed_small", clip=None)
    start = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))
    one, _ = samplers.sample(ddim, toy_network, start, key=jax.random.key(7))
    two, _ = samplers.sample(ddpm, toy_network, start, key=jax.random.key(7))
    np.testing.assert_allclose(one, two, atol=2e-5)


def test_learned_variance_interpolates_between_the_fixed_ones():
    chain = process.linear(100)
    start = jax.random.normal(jax.random.key(0), (2, 4, 4, 1))

    def with_variance(value):
        return lambda x, t: jnp.concatenate([toy_network(x, t), jnp.full_like(x, value)], axis=-1)

    learned = samplers.ddpm(chain, "epsilon", 10, variance="learned_range")
    for value, variance in [(-1, "fixed_small"), (1, "fixed_large")]:
        fixed = samplers.ddpm(chain, "epsilon", 10, variance=variance)
        one, _ = samplers.sample(learned, with_variance(value), start, key=jax.random.key(2))
        two, _ = samplers.sample(fixed, toy_network, start, key=jax.random.key(2))
        np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_gaussian_data_keeps_its_moments(eta):
    """With the exact denoiser of N(mean, deviation^2), 1000 steps of any eta must give that Gaussian back."""
    mean, deviation = 0.3, 0.4
    chain = process.linear()
    sampler = samplers.ddim(chain, "sample", 1000, eta=eta, clip=None)
    alphas, sigmas = jnp.sqrt(chain.alphas_cumprod), jnp.sqrt(1 - chain.alphas_cumprod)

    def exact(x, t):
        alpha, sigma = alphas[t.astype(int)], sigmas[t.astype(int)]
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    keys = jax.random.split(jax.random.key(0), 4096)
    start = samplers.initial_noise(sampler, keys, (1,))
    x, _ = samplers.sample(sampler, exact, start, key=keys, return_trajectory=False)
    np.testing.assert_allclose([x.mean(), x.std()], [mean, deviation], atol=0.02)


@pytest.mark.parametrize(
    ("spacing", "num_steps", "expected"),
    [
        ("leading", 10, list(range(900, -1, -100))),
        ("trailing", 10, list(range(999, -1, -100))),
        ("linspace", 10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("even", 10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("even", 4, [999, 666, 333, 0]),
        ("strided", 10, list(range(900, -1, -100))),
        ("strided", 12, list(range(11 * 84, -1, -84))),
        ("quadratic", 10, [800, 632, 483, 355, 246, 158, 88, 39, 9, 0]),
    ],
)
def test_spacings(spacing, num_steps, expected):
    sampler = samplers.ddim(process.linear(), "epsilon", num_steps, spacing_rule=spacing)
    # The quadratic rule floors, and float64 puts 800 just below 800.
    assert np.abs(sampler.timesteps - expected).max() <= (1 if spacing == "quadratic" else 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 0}, "num_steps is 0"),
        ({"num_steps": 1001}, "num_steps is 1001"),
        ({"spacing_rule": "leding"}, "spacing_rule is 'leding'"),
        ({"num_steps": 1000, "offset": 1}, "outside of 0 to 999"),
        ({"num_steps": 300, "spacing_rule": "strided"}, "no integer stride visits exactly 300 of 1000"),
    ],
)
def test_impossible_steps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        samplers.ddim(process.linear(), "epsilon", **arguments)


def test_a_timestep_may_repeat_in_ddim_and_changes_nothing():
    """The released quadratic rule visits 0 twice with 50 steps."""
    chain = process.linear()
    sampler = samplers.ddim(chain, "epsilon", 50, spacing_rule="quadratic")
    assert sampler.timesteps[-2:].tolist() == [0, 0]
    _, trajectory = samplers.sample(sampler, toy_network, jax.random.normal(jax.random.key(0), (1, 2, 2, 1)))
    np.testing.assert_allclose(trajectory[-2], trajectory[-3], atol=1e-6)
    with pytest.raises(ValueError, match="twice"):
        samplers.ddpm(chain, "epsilon", 50, spacing_rule="quadratic")


def test_epsilon_prediction_is_refused_where_no_signal_is_left():
    with pytest.raises(ValueError, match="not finite"), np.errstate(divide="ignore"):
        samplers.ddim(process.linear(zero_terminal_snr=True), "epsilon", 10, spacing_rule="trailing")


def test_new_coefficients_do_not_recompile():
    compiled = 0

    @jax.jit
    def run(sampler, x):
        nonlocal compiled
        compiled += 1
        return samplers.sample(sampler, toy_network, x, return_trajectory=False)[0]

    start = jnp.ones((1, 2, 2, 1))
    one = run(samplers.ddim(process.linear(), "epsilon", 7), start)
    two = run(samplers.ddim(process.cosine(), "v", 7), start)
    assert compiled == 1 and np.abs(one - two).max() > 1e-3
