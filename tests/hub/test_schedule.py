"""Solvers on a checkpoint's schedule: names, what states are made of, and beginnings in the middle."""

import numpy as np
import pytest

from diffusion_jax.hub.schedule import FLOW_NAMES, NAMES, Schedule

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


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", NAMES)
def test_levels_are_those_of_the_timesteps(name, prediction):
    """Signal and noise of the state before each row, whatever the units of the solver's state."""
    if name in ("plms", "pndm") and prediction == "v_prediction":
        pytest.skip("they average noise")
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
    np.testing.assert_allclose(sigma, sampler.timesteps / 1000)
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
    sample = Schedule(STABLE_DIFFUSION | {"prediction_type": "sample"}).with_solver("ddim")
    with pytest.raises(ValueError, match="a network that predicts 'sample' cannot start from an image"):
        sample.levels(sample.sampler(5))
