"""Every published sampler and spacing is a few fields of a config."""

import numpy as np
import pytest

from diffusion_jax import config as experiment
from diffusion_jax.diffusion import samplers
from diffusion_jax.methods.diffusion import building


def sampler(process: str, **fields):
    """What a config with these fields of `sampling` builds, with ten steps."""
    config = experiment.default()
    config.process.name = process
    config.sampling.num_steps = 10
    config.sampling.update(fields)
    if fields.get("variance") == "learned_range":
        config.method.bound = "hybrid"
    if process == "rectified_flow":
        config.method.prediction = "velocity"
    experiment.check(config, num_devices=1)
    return building.sampler(config, building.process(config))


# (process, fields of `sampling`, network evaluations of ten steps)
SOLVERS = [
    ("linear", {"name": "ddpm", "variance": "fixed_small"}, 10),
    ("linear", {"name": "ddpm", "variance": "fixed_large"}, 10),
    ("linear", {"name": "ddpm", "variance": "learned_range", "respacing": "5,5"}, 10),
    ("linear", {"name": "ddim", "eta": 0.5}, 10),
    ("linear", {"name": "ddim", "respacing": "ddim10", "rederive_epsilon": True, "clip": 1.0}, 10),
    ("linear", {"name": "pndm", "offset": 1}, 19),
    ("linear", {"name": "plms"}, 11),
    ("linear", {"name": "euler"}, 10),
    ("linear", {"name": "euler_ancestral", "eta": 0.5}, 10),
    ("linear", {"name": "heun"}, 19),
    ("edm", {"name": "edm", "s_churn": 5.0, "s_noise": 1.007}, 19),
    ("linear", {"name": "edm_ablation", "discretization": "vp", "schedule": "vp", "scaling": "vp"}, 19),
    ("linear", {"name": "lms", "order": 4}, 10),
    ("linear", {"name": "deis", "order": 3}, 10),
    ("linear", {"name": "dpmpp", "order": 2}, 10),
    ("linear", {"name": "dpmpp", "order": 3}, 10),
    ("linear", {"name": "dpmpp_singlestep", "order": 2}, 10),
    ("linear", {"name": "dpmpp_sde"}, 10),
    ("linear", {"name": "unipc", "order": 3, "variant": "bh1"}, 10),
    ("linear", {"name": "ipndm", "order": 4}, 10),
    ("rectified_flow", {"name": "euler"}, 10),
    ("rectified_flow", {"name": "heun"}, 19),
    ("rectified_flow", {"name": "sde", "diffusion_form": "sbdm", "solver": "heun", "last_step": "tweedie"}, 19),
    ("rectified_flow", {"name": "adaptive", "rtol": 1e-3}, 10),
    ("vp_sde", {"name": "predictor_corrector", "snr": 0.05, "corrector_steps": 2}, 30),
    ("ve_sde", {"name": "predictor_corrector"}, 20),
    ("sub_vp_sde", {"name": "predictor_corrector"}, 20),
]


@pytest.mark.parametrize(("process", "fields", "evaluations"), SOLVERS)
def test_a_solver_of_the_papers(process, fields, evaluations):
    assert sampler(process, **fields).num_evaluations == evaluations


def test_no_solver_is_forgotten():
    assert {fields["name"] for _, fields, _ in SOLVERS} == set(samplers.SAMPLERS)


TIMESTEPS = ("leading", "trailing", "linspace", "quadratic", "even", "strided")
LEVELS = ("karras", "exponential", "log_snr", "beta")


@pytest.mark.parametrize(
    ("process", "name", "rules"),
    [
        ("linear", "ddim", TIMESTEPS),
        ("linear", "euler", (*TIMESTEPS, *LEVELS)),
        ("vp_sde", "dpmpp", ("linspace", "trailing", *LEVELS)),
        ("edm", "heun", LEVELS),
    ],
)
def test_a_spacing_of_the_papers(process, name, rules):
    visited = {rule: np.round(sampler(process, name=name, spacing_rule=rule).timesteps, 6) for rule in rules}
    for rule, times in visited.items():
        assert (np.diff(times) <= 0).all(), rule
    # log_snr is the name that other papers have for exponential; even and linspace, strided and leading may agree.
    same = {("exponential", "log_snr"), ("linspace", "even"), ("leading", "strided")}
    for one in rules:
        for other in rules[rules.index(one) + 1 :]:
            equal = visited[one].tolist() == visited[other].tolist()
            assert equal == ((one, other) in same), (one, other)


def test_pndm_needs_even_steps_of_a_chain():
    with pytest.raises(experiment.ConfigError, match="needs a discrete process"):
        sampler("vp_sde", name="pndm")
    with pytest.raises(experiment.ConfigError, match="needs even steps, as of 'leading'"):
        sampler("linear", name="pndm", spacing_rule="quadratic")
    assert sampler("linear", name="pndm").timesteps.tolist()[:6] == [900, 850, 850, 800, 800, 750]
