"""Every scheduler of the goldens, from its config: the trajectories of diffusers at each call of the network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.diffusion import samplers
from tests import golden

ENTRIES = golden.config("samplers", "schedulers.json")


def config_of(name):
    return {"_class_name": ENTRIES[name]["scheduler"], **ENTRIES[name]["config"]}


def toy_network(x, t):
    """The network of the goldens (goldens/README.md)."""
    return jnp.tanh(0.7 * x + 0.3 * jnp.sin(t / 1000 * 6.283185307179586) - 0.05)


@pytest.mark.parametrize("num_steps", [10, 25])
@pytest.mark.parametrize("name", ENTRIES)
def test_trajectory_is_the_schedulers(name, num_steps):
    reference = golden.load("samplers")
    trajectory = reference[f"{name}/{num_steps}/trajectory"]
    sampler = hub.load_sampler(config_of(name), num_steps, **ENTRIES[name].get("step_arguments", {}))
    np.testing.assert_allclose(sampler.timesteps, reference[f"{name}/{num_steps}/timesteps"], rtol=1e-5, atol=1e-3)
    run = jax.jit(lambda sampler, x, noise: samplers.sample(sampler, toy_network, x, noise=noise)[1])
    ours = run(sampler, jnp.asarray(trajectory[0]), reference.get(f"{name}/{num_steps}/noise"))
    # diffusers' tables are float32 and cost it up to some 1e-5 of a state whose size is the noise level.
    scale = np.maximum(1, np.abs(trajectory).max(axis=(1, 2, 3, 4), keepdims=True))
    np.testing.assert_allclose(ours / scale, trajectory / scale, atol=2e-5)


@pytest.mark.parametrize("name", ["euler-sd", "heun-sd", "edm-euler", "dpmpp-2m-sd", "flow-euler"])
def test_init_noise_sigma_is_the_schedulers(name):
    """The goldens start at one draw of unit noise times init_noise_sigma."""
    reference = golden.load("samplers")
    unit = reference["dpmpp-2m-sd/10/trajectory"][0]
    np.testing.assert_allclose(
        hub.load_sampler(config_of(name), 10).init_noise_sigma * unit, reference[f"{name}/10/trajectory"][0], rtol=1e-4
    )


def test_reads_files_and_folders(tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(config_of("euler-sd")))
    for source in (path, str(tmp_path)):
        assert hub.load_sampler(source, num_steps=7).num_steps == 7


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("euler-sd", {"_class_name": "EulerScheduler"}, "scheduler 'EulerScheduler' is not supported; there are DDPM"),
        ("euler-sd", {"interpolation_type": "log_linear"}, "interpolation_type is 'log_linear'; only 'linear'"),
        ("euler-sd", {"flavour": 3}, "unknown options flavour"),
        ("ddim-sd-epsilon", {"thresholding": True}, "thresholding is True"),
        ("ddim-sd-epsilon", {"prediction_type": "flow"}, "prediction_type is 'flow'; it can be epsilon"),
        ("ddim-sd-epsilon", {"beta_schedule": "exp"}, "beta_schedule is 'exp'"),
        ("ddim-sd-epsilon", {"timestep_spacing": "linspace"}, "does not visit"),
        ("pndm-sd", {"skip_prk_steps": False}, "skip_prk_steps"),
        ("unipc-2-sd", {"disable_corrector": [0]}, "disable_corrector"),
        ("flow-euler", {"use_dynamic_shifting": True}, "use_dynamic_shifting is True"),
    ],
)
def test_what_is_not_supported_is_named(name, changes, message):
    with pytest.raises(ValueError, match=message):
        hub.load_sampler({**config_of(name), **changes}, 10)


def test_impossible_arguments_are_named():
    with pytest.raises(ValueError, match="EulerDiscreteScheduler has no eta"):
        hub.load_sampler(config_of("euler-sd"), 10, eta=1.0)
    with pytest.raises(ValueError, match="num_steps is 0"):
        hub.load_sampler(config_of("euler-sd"), 0)


def test_all_31_entries_are_there():
    assert len(ENTRIES) == 31
