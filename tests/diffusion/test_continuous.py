"""Processes in continuous time against the SDEs that define them, and the networks' interfaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.diffusion import preconditioning, prediction, process, samplers

UNIT = {"time_scale": 1.0}
PROCESSES = {
    "vp": process.VPSDE(**UNIT),
    "sub_vp": process.SubVPSDE(**UNIT),
    "ve": process.VESDE(**UNIT),
    "edm": process.EDM(),
    "flow": process.RectifiedFlow(**UNIT),
}
TIMES = np.array([0.02, 0.3, 0.7, 0.95])


def drift_and_diffusion(chain, t):
    """f and g^2 of dx = f x dt + g dw, from the moments: f = alpha' / alpha, g^2 = (sigma^2)' - 2 f sigma^2."""
    drift = jax.grad(lambda t: jnp.log(chain.alpha(t)))(t)
    return drift, jax.grad(lambda t: chain.sigma(t) ** 2)(t) - 2 * drift * chain.sigma(t) ** 2


@pytest.mark.parametrize("t", TIMES)
def test_moments_follow_the_sdes_of_song_et_al(t):
    with jax.enable_x64(True):
        t = jnp.float64(t)
        rate = 0.1 + 19.9 * t
        np.testing.assert_allclose(drift_and_diffusion(PROCESSES["vp"], t), (-rate / 2, rate), rtol=1e-9)
        drift, diffusion = drift_and_diffusion(PROCESSES["sub_vp"], t)
        integral = 0.1 * t + 19.9 * t**2 / 2
        np.testing.assert_allclose((drift, diffusion), (-rate / 2, rate * (1 - np.exp(-2 * integral))), rtol=1e-7)
        drift, diffusion = drift_and_diffusion(PROCESSES["ve"], t)
        np.testing.assert_allclose(drift, 0, atol=1e-12)
        sigma = 0.01 * 5000.0**t
        np.testing.assert_allclose(diffusion, 2 * np.log(5000) * sigma**2, rtol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_inverses(name):
    chain = PROCESSES[name]
    ratio = chain.sigma(TIMES) / chain.alpha(TIMES)
    np.testing.assert_allclose(chain.time_of(ratio), TIMES, rtol=1e-9)
    np.testing.assert_allclose(chain.alpha_at(ratio), chain.alpha(TIMES), rtol=1e-9)
    np.testing.assert_allclose(chain.log_snr(TIMES), -2 * np.log(ratio), rtol=1e-9, atol=1e-12)
    low, high = chain.ratio_range()
    assert 0 < low < 0.02 and high > 40


def test_time_scale_stretches_time_and_nothing_else():
    for kind in (process.VPSDE, process.SubVPSDE, process.VESDE, process.RectifiedFlow):
        unit, stretched = kind(time_scale=1.0), kind(time_scale=500.0)
        np.testing.assert_allclose(stretched.alpha(500 * TIMES), unit.alpha(TIMES), rtol=1e-12)
        np.testing.assert_allclose(stretched.sigma(500 * TIMES), unit.sigma(TIMES), rtol=1e-12)
        np.testing.assert_allclose(stretched.time_of(2.0), 500 * unit.time_of(2.0))
        np.testing.assert_allclose(stretched.time_at(jnp.array(0.3)), 500 * unit.time_at(jnp.array(0.3)), rtol=1e-6)
        assert stretched.t_max == 500 and stretched.t_end == 500 * unit.t_end


def test_edm_and_logit_normal_times_have_their_distributions():
    u = (jnp.arange(20_000) + 0.5) / 20_000
    log_sigma = np.log(process.EDM().time_at(u))
    np.testing.assert_allclose([log_sigma.mean(), log_sigma.std()], [-1.2, 1.2], atol=2e-3)
    t = process.RectifiedFlow(logit_mean=0.5, logit_std=0.8, time_scale=1.0).time_at(u)
    logits = np.log(t / (1 - t))
    np.testing.assert_allclose([logits.mean(), logits.std()], [0.5, 0.8], atol=2e-3)
    # The ends of the unit interval, which float32 draws reach, stay finite.
    assert np.isfinite(process.EDM().time_at(jnp.array([0.0, 1.0]))).all()


def test_the_shift_of_a_flow_moves_training_and_sampling_alike():
    """Esser et al. 2024, eq. 23: the noise-to-signal ratio is `shift` times what it was."""
    plain, shifted = process.RectifiedFlow(), process.RectifiedFlow(shift=3.0)
    u = jnp.linspace(0.1, 0.9, 9)

    def ratio(t):
        return plain.sigma(t) / plain.alpha(t)

    np.testing.assert_allclose(ratio(shifted.time_at(u)), 3 * ratio(plain.time_at(u)), rtol=1e-5)
    times = [chain.sampling_times("trailing", 10)[1:] for chain in (plain, shifted)]
    np.testing.assert_allclose(ratio(times[1]), 3 * ratio(times[0]), rtol=1e-9)


def test_a_flow_may_leave_out_the_times_next_to_pure_noise():
    """Rectified flow's released code (losses.py, sampling.py): t = u (1 - eps) + eps from noise to image, eps 0.001."""
    flow, eps = process.RectifiedFlow(t_start=0.999, time_scale=999.0), 1e-3
    u = jnp.linspace(0.0, 0.99, 12)
    np.testing.assert_allclose(1 - flow.time_at(u) / 999, (1 - u) * (1 - eps) + eps, rtol=1e-5)
    steps = samplers.euler(flow, "velocity", 8).timesteps
    np.testing.assert_allclose(1 - steps / 999, np.arange(8) / 8 * (1 - eps) + eps, rtol=1e-6)
    assert samplers.adaptive(flow, "velocity").times[0] == pytest.approx(0.999 * 999)
    # The end of the interval is an end also where times are moved.
    moved = process.RectifiedFlow(t_start=0.9, shift=3.0)
    np.testing.assert_allclose(moved.time_at(jnp.array(1.0)), moved.sampling_times("trailing", 5)[0], rtol=1e-6)
    for wrong in (0.0, 1e-3, 1.01):
        with pytest.raises(ValueError, match=r"t_start is 0?\.?\d*"):
            process.RectifiedFlow(t_start=wrong)


def test_where_sampling_calls_the_network():
    flow = process.RectifiedFlow()
    np.testing.assert_allclose(samplers.euler(flow, "velocity", 4).timesteps, [1000, 750, 500, 250])
    np.testing.assert_allclose(
        samplers.euler(flow, "velocity", 4, spacing_rule="linspace").timesteps[[0, -1]], [1000, 1]
    )
    karras = samplers.euler(process.EDM(), "sample", 5).timesteps
    np.testing.assert_allclose(np.diff(karras ** (1 / 7), 2), 0, atol=1e-12)
    np.testing.assert_allclose(karras[[0, -1]], [80, 0.002])
    uniform = samplers.euler(process.VPSDE(), "epsilon", 6, spacing_rule="log_snr").timesteps
    np.testing.assert_allclose(np.diff(process.VPSDE().log_snr(uniform), 2), 0, atol=1e-9)
    middle = samplers.euler(process.EDM(), "sample", 3, spacing_rule="beta").timesteps[1]
    np.testing.assert_allclose(middle, 0.002 + (80 - 0.002) * stats.beta.ppf(0.5, 0.6, 0.6))


@pytest.mark.parametrize("name", preconditioning.PRECONDITIONINGS)
def test_a_preconditioned_network_is_called_as_its_authors_do(name):
    """D(y; sigma) = c_skip y + c_out F(c_in y, c_noise), here at a state scaled by alpha."""
    alpha, sigma, x = 0.6, 0.9, np.linspace(-2, 2, 5)
    c = preconditioning.PRECONDITIONINGS[name](sigma / alpha)
    call = prediction.interface(name, 0.3, alpha, sigma)

    def network(x, t):
        return np.tanh(x) + 0.01 * t

    expected = c.c_skip * (x / alpha) + c.c_out * network(c.c_in * x / alpha, c.c_noise)
    np.testing.assert_allclose(call.on_x * x + call.on_output * network(call.input_scale * x, call.timestep), expected)


def test_iddpm_networks_are_called_at_levels_that_they_were_trained_at():
    sampler = samplers.euler(process.EDM(), "iddpm", 10)
    np.testing.assert_allclose(sampler.timesteps, np.round(sampler.timesteps), atol=0)
    levels = preconditioning.iddpm_sigmas()[999 - sampler.timesteps.astype(int)]
    np.testing.assert_allclose(np.asarray(sampler.table.input_scale), 1 / np.sqrt(1 + levels**2), rtol=1e-12)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="prediction is 'eps'; it can be epsilon"):
        samplers.euler(process.EDM(), "eps", 5)
    with pytest.raises(ValueError, match="spacing_rule is 'leading'; in continuous time it can be linspace, trailing"):
        samplers.euler(process.VPSDE(), "epsilon", 5, spacing_rule="leading")
    with pytest.raises(ValueError, match="offset is 1"):
        samplers.euler(process.VPSDE(), "epsilon", 5, offset=1)
    with pytest.raises(ValueError, match="needs 0 < sigma_min < sigma_max < inf"):
        samplers.euler(process.RectifiedFlow(), "velocity", 5, spacing_rule="karras")
    with pytest.raises(ValueError, match="some signal at its first point"):
        samplers.lms(process.RectifiedFlow(), "velocity", 5)


def test_every_registered_sampler_runs_on_its_defaults():
    """What a config can name must work with no further options, on a chain or else in continuous time."""
    start = jax.random.normal(jax.random.key(0), (2, 3))
    for name, constructor in samplers.SAMPLERS.items():
        continuous = name in ("adaptive", "sde")
        chain = process.RectifiedFlow() if continuous else process.linear(100)
        sampler = constructor(chain, "velocity" if continuous else "v", num_steps=6)
        x, states = samplers.sample(sampler, lambda x, t: jnp.tanh(x), start, key=jax.random.key(1))
        assert x.shape == start.shape and np.isfinite(x).all(), name
        assert len(states) == sampler.num_evaluations + 1, name
        assert len(sampler.timesteps) == sampler.num_evaluations, name


def test_levels_and_timesteps_of_a_chain_interpolate_in_log_ratio():
    chain = process.linear()
    times = np.array([0.0, 10.0, 400.0, 999.0])
    np.testing.assert_allclose(chain.time_of(chain.ratios[times.astype(int)]), times, atol=1e-9)
    between = np.sqrt(chain.ratios[400] * chain.ratios[401])
    np.testing.assert_allclose(chain.time_of(between), 400.5, atol=1e-9)
