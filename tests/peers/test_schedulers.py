"""hub.load_sampler beside diffusers' schedulers: random options, step counts and beginnings in the middle.

Whole trajectories are compared, with the same noise for both. SCHEDULER_CASES and SCHEDULER_FIRST_CASE in the
environment ask for other cases than the first ones.
"""

import os
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import hub
from tests import trajectories
from tests.peers import cases, schedulers

CASES = int(os.environ.get("SCHEDULER_CASES", "170"))
FIRST = int(os.environ.get("SCHEDULER_FIRST_CASE", "0"))


def predict(x, t):
    return schedulers.network(jnp, x, t, -1, False)


def predict_with_variance(x, t):
    return schedulers.network(jnp, x, t, -1, True)


def ours(config, run, x, noises):
    told = predict_with_variance if schedulers.doubled(config) else predict
    return trajectories.of(hub.load_sampler(config, **run), told, x, noises)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + CASES))
def test_trajectories(seed, record_property):
    config, run = schedulers.draw(seed)
    rng, name = np.random.default_rng(10_000 + seed), config["_class_name"]
    x, noises = (rng.standard_normal((*more, *schedulers.SHAPE)) for more in ((), (run["num_steps"],)))
    try:
        with schedulers.double(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = schedulers.theirs(config, run, x, noises)
    except Exception as error:  # there are many ways in which it says no
        record_property("peer", (name, f"diffusers fails: {type(error).__name__}"))
        return
    if not np.isfinite(wanted).all():
        record_property("peer", (name, "diffusers is not finite"))
        return
    # Each state relative to its own size: the first ones of some schedulers are thousands of times the last.
    size = np.maximum(1, np.abs(wanted).max(axis=(1, 2, 3, 4), keepdims=True))

    def scaled():
        states = ours(config, run, x, noises)
        assert states.shape == wanted.shape  # NumPy's own ValueError would count as a refusal
        return states / size

    cases.agree(record_property, name, scaled, wanted / size, 1e-5)
