"""diffusers' schedulers from their configs: the trajectories of diffusers at each call of the network.

The goldens "samplers-more" were made like "samplers" (goldens/README.md), by diffusers 0.42.1 with 10 steps, to cover
further options: what a config leaves out has the default of its class there.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.diffusion import process, samplers
from tests import golden

ENTRIES = golden.config("samplers", "schedulers.json")
MORE = golden.config("samplers-more", "schedulers.json")
# Made in the same way, of the classes that came to these later; each entry has its number of steps.
LATER = golden.config("samplers-ipndm", "schedulers.json")


def config_of(name):
    entry = (ENTRIES | MORE | LATER)[name]
    return {"_class_name": entry["scheduler"], **entry["config"]}


def toy_network(x, t):
    """The network of the goldens (goldens/README.md)."""
    return jnp.tanh(0.7 * x + 0.3 * jnp.sin(t / 1000 * 6.283185307179586) - 0.05)


@jax.jit
def trajectory_of(sampler, x, noise):
    return samplers.sample(sampler, toy_network, x, noise=noise)[1]


def check_against(sampler, reference, prefix):
    np.testing.assert_allclose(sampler.timesteps, reference[f"{prefix}/timesteps"], rtol=1e-6, atol=2e-3)
    trajectory, noise = reference[f"{prefix}/trajectory"], reference.get(f"{prefix}/noise")
    assert sampler.stochastic == (noise is not None)
    ours = trajectory_of(sampler, jnp.asarray(trajectory[0]), noise)
    # Relative to the size of the state at each row, which is that of the noise.
    size = np.maximum(1, np.abs(trajectory).max(axis=(1, 2, 3, 4), keepdims=True))
    # diffusers' tables are float32: next to zero SNR its noise levels are 3e-5 off.
    np.testing.assert_allclose(ours / size, trajectory / size, atol=4e-5 if "v-zsnr" in prefix else 1e-5)


@pytest.mark.parametrize("num_steps", [10, 25])
@pytest.mark.parametrize("name", ENTRIES)
def test_trajectory_is_the_schedulers(name, num_steps):
    sampler = hub.load_sampler(config_of(name), num_steps, **ENTRIES[name].get("step_arguments", {}))
    check_against(sampler, golden.load("samplers"), f"{name}/{num_steps}")


@pytest.mark.parametrize("name", MORE)
def test_trajectory_with_other_options_is_the_schedulers(name):
    check_against(hub.load_sampler(config_of(name), 10), golden.load("samplers-more"), name)


@pytest.mark.parametrize("name", LATER)
def test_trajectory_of_the_later_classes_is_the_schedulers(name):
    check_against(hub.load_sampler(config_of(name), LATER[name]["num_steps"]), golden.load("samplers-ipndm"), name)


def test_ipndm_begins_in_the_middle_with_what_its_network_says():
    whole, part = (hub.load_sampler(config_of("ipndm"), 10, first_step=first) for first in (0, 4))
    np.testing.assert_array_equal(part.timesteps, whole.timesteps[4:])
    np.testing.assert_array_equal(whole.table.denoise[0], 0)
    assert part.table.denoise[0, 1] < -0.1


@pytest.mark.parametrize("name", ["euler-sd", "heun-sd", "edm-euler", "dpmpp-2m-sd", "flow-euler"])
def test_init_noise_sigma_is_the_schedulers(name):
    """The goldens start at one draw of unit noise times init_noise_sigma."""
    reference = golden.load("samplers")
    unit = reference["dpmpp-2m-sd/10/trajectory"][0]
    np.testing.assert_allclose(
        hub.load_sampler(config_of(name), 10).init_noise_sigma * unit, reference[f"{name}/10/trajectory"][0], rtol=1e-4
    )


def test_options_of_other_schedulers_are_ignored_as_in_diffusers():
    """The scheduler_config.json of Stable Diffusion 1.5 has some that PNDM does not know."""
    published = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "num_train_timesteps": 1000,
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
        "clip_sample": False,
    }
    ours, expected = (hub.load_sampler(config, 10) for config in (published, config_of("pndm-sd")))
    np.testing.assert_array_equal(ours.table.next_x, expected.table.next_x)


def test_pndm_on_a_chain_is_the_schedulers():
    chain = process.scaled_linear()
    ours = samplers.pndm(chain, "epsilon", 10, offset=1, final_alpha_cumprod=float(chain.alphas_cumprod[0]))
    for column, expected in zip(ours.table, hub.load_sampler(config_of("pndm-prk"), 10).table, strict=True):
        np.testing.assert_allclose(column, expected, atol=1e-12)


def test_trained_betas_take_the_place_of_a_schedule():
    betas = np.linspace(0.0001, 0.02, 1000).tolist()
    ours = hub.load_sampler(config_of("ddim-linear-epsilon") | {"trained_betas": betas, "beta_schedule": "linear"}, 10)
    np.testing.assert_allclose(
        ours.table.next_x, hub.load_sampler(config_of("ddim-linear-epsilon"), 10).table.next_x, rtol=1e-12
    )


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"missing\.json: cannot be read as JSON .no such file"):
        hub.load_sampler(tmp_path / "missing.json")
    (tmp_path / "scheduler_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds a list; it must hold a JSON object"):
        hub.load_sampler(tmp_path)


def test_reads_files_and_folders(tmp_path):
    path = tmp_path / "scheduler_config.json"
    path.write_text(json.dumps(config_of("euler-sd")))
    for source in (path, str(tmp_path)):
        assert hub.load_sampler(source, num_steps=7).num_steps == 7


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "euler-sd",
            {"_class_name": "EulerScheduler"},
            "'EulerScheduler' is not supported; there are, among others, \\w*Euler",
        ),
        (
            "euler-sd",
            {"_class_name": "KDPM2DiscreteScheduler"},
            r"'KDPM2DiscreteScheduler' is not supported; there are, among others, \w+, \w+, \w+ \(docs/hub",
        ),
        (
            "euler-sd",
            {"num_train_timesteps": 2**31},
            "num_train_timesteps is 2147483648; it can be up to 100,000",
        ),
        ("ipndm", {"trained_betas": [0.5, 0.0]}, "trained_betas is .0.5, 0.0.; only None is supported"),
        ("euler-sd", {"interpolation_type": "cubic"}, "interpolation_type is 'cubic'; it can be linear, log_linear"),
        (
            "euler-sd",
            {"interpolation_type": "log_linear", "timestep_type": "continuous", "prediction_type": "v_prediction"},
            "together make one call more than steps",
        ),
        ("euler-sd", {"flavour": 3}, "unknown options flavour"),
        ("ddim-sd-epsilon", {"prediction_type": "flow"}, "prediction_type is 'flow'; it can be epsilon"),
        ("ddim-sd-epsilon", {"beta_schedule": "exp"}, "beta_schedule is 'exp'"),
        ("ddim-sd-epsilon", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, "holds no signal"),
        ("pndm-sd", {"prediction_type": "sample"}, "prediction_type is 'sample'; it can be epsilon, v_prediction"),
        ("dpmpp-2m-sd", {"use_flow_sigmas": True}, "use_flow_sigmas needs prediction_type 'flow_prediction'"),
        (
            "dpmpp-2m-sd",
            {"variance_type": "learned_range", "prediction_type": "v_prediction"},
            "variance_type is a learned one, which needs prediction_type 'epsilon'",
        ),
        ("dpmpp-2m-sd", {"algorithm_type": "dpmsolver"}, "algorithm_type is 'dpmsolver'"),
        ("dpmpp-2m-karras-sd", {"use_beta_sigmas": True}, "exclude each other"),
        ("unipc-2-sd", {"predict_x0": False}, "predict_x0 is False; only True is supported"),
        ("flow-euler", {"use_dynamic_shifting": True}, "use_dynamic_shifting needs mu"),
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
