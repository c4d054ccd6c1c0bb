"""hub.load_sampler beside diffusers' schedulers: random options, step counts and beginnings in the middle."""

import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.hub.schedule import Schedule
from tests.peers import schedulers

CASES = 170


@pytest.mark.parametrize("seed", range(CASES))
def test_trajectories(seed, record_property):
    config, num_steps, strength = schedulers.draw(seed)
    name = config["_class_name"]
    schedule = Schedule(config)
    first_step = min(schedule.first_step(num_steps, strength), num_steps - 1)
    generator = np.random.default_rng(seed)
    x, noise = generator.standard_normal((2, 3, 4)), generator.standard_normal((num_steps, 2, 3, 4))
    try:
        told, expected = schedulers.theirs(config, num_steps, first_step, x, noise)
    except (ValueError, IndexError, RuntimeError, TypeError) as error:
        record_property("peer", (name, f"diffusers refuses: {type(error).__name__}"))
        return
    if not np.isfinite(expected).all():
        record_property("peer", (name, "diffusers is not finite"))
        return
    try:
        sampler = hub.load_sampler(config, num_steps, first_step=first_step)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
        record_property("peer", (name, f"refused: {str(error)[:100]}"))
        return
    times, states = schedulers.ours(sampler, x, noise)
    assert len(times) == len(told)
    # diffusers' tables are float32: where a timestep is rounded, it may fall to the other side
    rounded = np.abs(np.array(times) - np.array(told)).max()
    assert rounded <= 2
    size = np.maximum(1, np.abs(expected).max(axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(states / size, expected / size, atol=5e-3 if rounded > 0.1 else 1e-3)
    record_property("peer", (name, "agree"))
