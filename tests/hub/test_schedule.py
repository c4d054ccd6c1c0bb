"""Solvers on a checkpoint's schedule: names, what states are made of, and beginnings in the middle."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import samplers
from diffusion_jax.hub.schedule import FLOW_NAMES, NAMES, Schedule
from tests import trajectories

TABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
STABLE_DIFFUSION = TABLE | {
    "_class_name": "PNDMScheduler",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


PREDICTIONS = ("epsilon", "v_prediction", "sample")
# PNDM has no prediction of the image.
CASES = [
    (name, kind)
    for name in NAMES
    for kind in PREDICTIONS
    if (name, kind) not in (("plms", "sample"), ("pndm", "sample"))
]


@pytest.mark.parametrize(("name", "prediction"), CASES)
def test_levels_are_those_of_the_timesteps(name, prediction):
    """Signal and noise of the state before each row, whatever the units of the solver's state."""
    schedule = Schedule(STABLE_DIFFUSION | {"prediction_type": prediction}).with_solver(name)
    sampler = schedule.sampler(10)
    alpha, sigma = schedule.levels(sampler)
    expected = np.exp(np.interp(sampler.timesteps, np.arange(1000), np.log(ALPHAS_CUMPROD / (1 - ALPHAS_CUMPROD))))
    # solvers with levels of their own round or interpolate the timesteps
    np.testing.assert_allclose((alpha / sigma) ** 2, expected, rtol=0.05 if name == "dpmpp_karras" else 1e-3)
    assert np.allclose(np.hypot(alpha, sigma), 1) or np.allclose(alpha, 1)


@pytest.mark.parametrize("name", FLOW_NAMES)
def test_levels_of_a_flow(name):
    schedule = Schedule(FLOW).with_solver(name)
    sampler = schedule.sampler(6)
    alpha, sigma = schedule.levels(sampler)
    # solvers of diffusion models tell the network a whole timestep
    np.testing.assert_allclose(sigma, sampler.timesteps / 1000, atol=1e-6 if name in ("euler", "heun") else 1e-3)
    np.testing.assert_allclose(alpha, 1 - sigma)


@pytest.mark.parametrize("name", NAMES)
def test_a_beginning_in_the_middle_leaves_the_first_steps_out(name):
    schedule = Schedule(STABLE_DIFFUSION).with_solver(name)
    whole, part = schedule.sampler(10), schedule.sampler(10, 4)
    assert part.num_steps == whole.num_steps - 4
    if name not in ("plms", "pndm"):  # these begin with steps of more evaluations
        np.testing.assert_array_equal(part.timesteps, whole.timesteps[-part.num_evaluations :])
    with pytest.raises(ValueError, match="first_step is 10; it can be 0 to 9"):
        schedule.sampler(10, 10)


def test_one_step_is_enough_to_see_whether_a_schedule_is_covered(tmp_path):
    for name in NAMES:
        Schedule(STABLE_DIFFUSION).with_solver(name).sampler(1)
    (tmp_path / "scheduler_config.json").write_text('{"_class_name": "NewScheduler"}')
    with pytest.raises(ValueError, match="scheduler 'NewScheduler' is not supported"):
        Schedule.read(tmp_path)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="sampler 'ddim' does not exist for this checkpoint; it can be euler, heun"):
        Schedule(FLOW).with_solver("ddim")
    with pytest.raises(ValueError, match="DDIM inversion needs a diffusion model"):
        Schedule(FLOW).inversion(10)
    own = samplers.build([samplers.Row(timestep=0.0, step=0, denoise=(1.0, 0.0))])
    with pytest.raises(ValueError, match="does not say what its states are made of"):
        Schedule(STABLE_DIFFUSION).levels(own)


@pytest.mark.parametrize("rule", ["karras", "exponential", "beta"])
@pytest.mark.parametrize(
    "scheduler",
    ["EulerDiscreteScheduler", "LMSDiscreteScheduler", "HeunDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"],
)
def test_levels_by_a_rule_can_be_opened_and_run_in_one_step(scheduler, rule, tmp_path):
    path = TABLE | {"_class_name": scheduler, f"use_{rule}_sigmas": True, "_diffusers_version": "0.42.1"}
    (tmp_path / "scheduler_config.json").write_text(json.dumps(path))
    schedule = Schedule.read(tmp_path)
    assert schedule.sampler(1).num_evaluations == 1
    assert schedule.sampler(10).num_steps == 10


# As diffusers saves them, the schedulers that are not read with keys that no other has.
SAVED = {
    "ddpm": {"_class_name": "DDPMScheduler", "variance_type": "fixed_small", "clip_sample": True},
    "lcm": {"_class_name": "LCMScheduler", "original_inference_steps": 50, "timestep_scaling": 10.0},
    "kdpm2": {"_class_name": "KDPM2DiscreteScheduler", "num_train_timesteps": 1000, "interpolation_type": "log"},
    "tcd": {"_class_name": "TCDScheduler", "gamma_of_its_own": 0.3, "original_inference_steps": 50},
}


@pytest.mark.parametrize("replaced", SAVED)
@pytest.mark.parametrize("name", ["dpmpp", "dpmpp_sde", "dpmpp_singlestep", "unipc", "deis", "ddim", "heun"])
def test_a_solver_does_not_care_what_it_replaces(name, replaced, tmp_path):
    (tmp_path / "scheduler_config.json").write_text(json.dumps(TABLE | SAVED[replaced]))
    if replaced in ("kdpm2", "tcd"):
        with pytest.raises(ValueError, match="is not supported"):
            Schedule.read(tmp_path)
    sampler = Schedule.read(tmp_path, name).sampler(10)
    np.testing.assert_array_equal(
        sampler.timesteps, Schedule(TABLE | {"_class_name": "x"}).with_solver(name).sampler(10).timesteps
    )


@pytest.mark.parametrize("strength", [0.29, 0.5, 0.66, 0.999, 1.0])
@pytest.mark.parametrize("num_steps", [7, 28])
def test_where_an_image_begins(num_steps, strength):
    """The formulas of diffusers' image-to-image pipelines: of Stable Diffusion, and of Stable Diffusion 3."""
    chain = num_steps - min(int(num_steps * strength), num_steps)
    flow = int(num_steps - num_steps * strength)
    assert Schedule(STABLE_DIFFUSION).first_step(num_steps, strength) == chain
    assert Schedule(FLOW).first_step(num_steps, strength) == flow


def test_a_flow_of_28_steps_and_half_a_step_begins_a_step_earlier_than_a_chain():
    assert Schedule(FLOW).first_step(28, 0.66) == 9  # 28 - 18.48
    assert Schedule(STABLE_DIFFUSION).first_step(28, 0.66) == 10  # 28 - 18


def test_pndm_begins_with_the_calls_that_are_left():
    """Five steps make six calls, 801, 601, 601, 401, 201 and 1, of which two are left out at strength 0.6."""
    schedule = Schedule(STABLE_DIFFUSION)
    first_step = schedule.first_step(5, 0.6)
    assert schedule.sampler(5, first_step).timesteps.tolist() == [601, 401, 201, 1]


def test_dynamic_shifting_follows_from_the_number_of_patches():
    """mu is 0.5 at 256 patches and 1.15 at 4096, as in Flux's and SD 3's pipelines; e^mu is the factor."""
    schedule = Schedule({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True})
    for tokens, mu in [(256, 0.5), (4096, 1.15), (1024, 0.63), (None, 0.5)]:
        sigma = schedule.sampler(4, tokens=tokens).timesteps[1] / 1000
        plain = 1 - (1 - 0.001) / 3
        assert sigma / (1 - sigma) == pytest.approx(np.exp(mu) * plain / (1 - plain))


@pytest.mark.parametrize("name", FLOW_NAMES)
def test_solvers_of_diffusion_models_follow_a_flow(name):
    sampler = Schedule(FLOW).with_solver(name).sampler(40)
    # the velocity of a distribution that is a point: x_0 whatever the state
    point, noise = np.array([[[[0.5]]]]), np.array([[[[-1.2]]]])
    end = trajectories.of(sampler, _towards_a_half, noise, np.ones((40, 1, 1, 1, 1)))[-1]
    # some of them tell the network a whole timestep, which is up to 0.001 of the path away
    np.testing.assert_allclose(end, point, atol=2e-3)


def _towards_a_half(x, t):
    return (x - 0.5) / jnp.maximum(t / 1000, 1e-6)
