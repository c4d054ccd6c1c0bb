"""Samplers of scheduler configs: the states of diffusers with the same noise, for options and starts of every kind.

The golden "samplers-options" holds what diffusers 0.42.1 gives when it is made to compute in float64 (`theirs` in
tests/peers/schedulers.py). Each entry names a scheduler, its config and how it is run, in the words of
`hub.load_sampler`. Of runs with more than 100 steps every tenth state is kept, counted from the last.
"""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import hub
from tests import golden, trajectories

NAME = "samplers-options"
ENTRIES = golden.config(NAME, "schedulers.json")


def sampler_of(name):
    entry = ENTRIES[name]
    return hub.load_sampler({"_class_name": entry["scheduler"], **entry["config"]}, **entry["run"])


def network(x, t):
    """The network of the recording."""
    return jnp.tanh(0.7 * x + 0.3 * jnp.sin(t / 1000 * 6.283185307179586) - 0.05)


def network_with_variance(x, t):
    """Likewise, with the channels that tell of a variance."""
    return jnp.concatenate([network(x, t), jnp.sin(1.3 * x + t / 1000 * 6.283185307179586)], -1)


@pytest.fixture(scope="module")
def recorded():
    return golden.load(NAME)


@pytest.mark.parametrize("name", ENTRIES)
def test_states_are_the_schedulers(name, recorded):
    sampler = sampler_of(name)
    start, expected = recorded[f"{name}/start"], recorded[f"{name}/states"]
    noise = recorded.get(f"{name}/noise")
    assert sampler.stochastic == (noise is not None) or name == "ddpm-offset-fixed_small"  # which adds 1e-10 at the end
    predict = network_with_variance if sampler.learned_variance else network
    states = trajectories.of(sampler, predict, start, noise)
    states = states[::-1][::10][::-1] if sampler.num_evaluations > 100 else states[1:]
    size = np.maximum(1, np.abs(expected).max(axis=(1, 2, 3, 4), keepdims=True))
    np.testing.assert_allclose(states / size, expected / size, atol=1e-6)


@pytest.mark.parametrize("name", [name for name in ENTRIES if "init_noise_sigma" in ENTRIES[name]])
def test_the_start_has_the_noise_that_the_scheduler_says(name):
    # diffusers says it in float32
    assert sampler_of(name).init_noise_sigma == pytest.approx(ENTRIES[name]["init_noise_sigma"], rel=2e-4)


def test_noise_of_a_cosine_chain_is_not_bounded():
    """The value that the scheduler prints; 2^12 is the bound of chains without terminal signal."""
    sampler = hub.load_sampler({"_class_name": "EulerDiscreteScheduler", "beta_schedule": "squaredcos_cap_v2"}, 5)
    assert sampler.init_noise_sigma == pytest.approx(20291.30, rel=1e-5)


@pytest.mark.parametrize(
    ("scheduler", "options"),
    [
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing", "algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_a_draw_towards_more_noise_is_refused(scheduler, options):
    config = {"_class_name": scheduler, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction", **options}
    with warnings.catch_warnings(), pytest.raises(ValueError, match="noise of 1000 steps rises"):
        warnings.simplefilter("error")
        hub.load_sampler(config, 1000)


@pytest.mark.parametrize("name", ["FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"])
def test_levels_that_end_at_a_given_noise_need_two_steps(name):
    config = {"_class_name": name, "shift_terminal": 0.1, "use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    with pytest.raises(ValueError, match="shift_terminal needs 2 steps or more"):
        hub.load_sampler(config, 1)
