"""SiT's SDE sampler: against the released algorithm written out in its own time, and against closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import process, samplers
from diffusion_jax.diffusion.samplers.sde import FORMS
from tests.diffusion.test_samplers_order import DEVIATION, MEAN, gaussian

FLOW = process.RectifiedFlow(time_scale=1.0)


def network(x, t):
    """Some velocity, noise - x_0 as here, at our time t."""
    xp = np if isinstance(x, np.ndarray) else jnp
    return xp.tanh(x + t) - 0.4 * x * t


def published(x, noise, num_points, solver, form, norm, last_step, size, begin):
    """willisma/SiT's loop: s runs from noise (0) to image (1), x = s image + (1 - s) noise, v = image - noise."""
    w_of = {
        "constant": lambda s: norm,
        "sbdm": lambda s: norm * ((1 - s) ** 2 / s + (1 - s)),
        "sigma": lambda s: norm * (1 - s),
        "linear": lambda s: norm * (1 - s),
        "decreasing": lambda s: 0.25 * (norm * np.cos(np.pi * s) + 1) ** 2,
        "increasing_decreasing": lambda s: norm * np.sin(np.pi * s) ** 2,
    }[form]

    def velocity(x, s):
        return -network(x, 1 - s)

    def score(x, s):
        return (s * velocity(x, s) - x) / ((1 - s) ** 2 + s * (1 - s))

    def drift(x, s):
        return velocity(x, s) + w_of(s) * score(x, s)

    end = 1.0 if last_step == "none" else 1 - size
    times = np.linspace(begin, end, num_points)
    dt = times[1] - times[0]
    for s, z in zip(times[:-1], noise, strict=False):
        spread = np.sqrt(2 * w_of(s)) * np.sqrt(dt) * z
        if solver == "euler":
            x = x + drift(x, s) * dt + spread
        else:
            x = x + spread
            first = drift(x, s)
            x = x + dt / 2 * (first + drift(x + dt * first, s + dt))
    if last_step == "mean":
        return x + size * drift(x, end)
    if last_step == "euler":
        return x + size * velocity(x, end)
    if last_step == "tweedie":
        return x / end + (1 - end) ** 2 / end * score(x, end)
    return x


@functools.cache
def _run():
    return jax.jit(lambda sampler, x, noise: samplers.sample(sampler, network, x, noise=noise, return_trajectory=False))


@pytest.mark.parametrize(
    ("solver", "form", "norm", "last_step", "size"),
    [
        *(("euler", form, 1.0, "mean", 0.04) for form in FORMS),
        *(("heun", form, 0.7, "mean", 0.04) for form in FORMS),
        ("euler", "sigma", 2.0, "tweedie", 0.1),
        ("heun", "sigma", 2.0, "euler", 0.1),
        ("euler", "linear", 1.0, "none", 0.04),
    ],
)
def test_the_released_algorithm(solver, form, norm, last_step, size):
    num_steps = 7
    x_T, *noise = np.random.default_rng(0).standard_normal((1 + num_steps, 2, 3))
    sampler = samplers.sde(
        FLOW,
        "velocity",
        num_steps,
        solver=solver,
        diffusion_form=form,
        diffusion_norm=norm,
        last_step=last_step,
        last_step_size=size,
    )
    assert sampler.num_evaluations == (num_steps if solver == "euler" else 2 * num_steps - 1)
    with jax.enable_x64(True):
        x, _ = _run()(sampler, jnp.asarray(x_T), jnp.asarray(np.stack(noise)))
    # The released code's number of steps counts points, and sbdm begins where w is finite.
    num_points = num_steps + 1 if last_step == "none" else num_steps
    begin = 1e-3 if form == "sbdm" else 0.0
    expected = published(x_T, noise, num_points, solver, form, norm, last_step, size, begin)
    np.testing.assert_allclose(x, expected, rtol=1e-10, atol=1e-12)


@functools.cache
def _exact(chain):
    return jax.jit(lambda s, x, noise: samplers.sample(s, gaussian(chain), x, noise=noise, return_trajectory=False))


def moments(sampler, chain):
    """Mean and deviation of what a sampler makes of a Gaussian, exactly: it is linear in x_T and in every noise."""
    n = sampler.num_steps
    x_T, noise = np.zeros((n + 2, 1)), np.zeros((n, n + 2, 1))
    x_T[1], noise[np.arange(n), np.arange(n) + 2] = 1, 1
    with jax.enable_x64(True):
        result = np.asarray(_exact(chain)(sampler, jnp.asarray(x_T), jnp.asarray(noise))[0])[:, 0]
    response = result[1:] - result[0]
    alpha, sigma = (f(sampler.timesteps[0]) for f in (chain.alpha, chain.sigma))
    start = alpha * MEAN, alpha**2 * DEVIATION**2 + sigma**2
    return result[0] + response[0] * start[0], np.sqrt(response[0] ** 2 * start[1] + np.sum(response[1:] ** 2))


VP = process.VPSDE(time_scale=1.0)


@pytest.mark.parametrize(
    ("chain", "options", "order"),
    [
        (FLOW, {"last_step": "none"}, 1),
        (FLOW, {}, 1),
        (FLOW, {"last_step": "tweedie", "diffusion_form": "constant"}, 1),
        (FLOW, {"diffusion_form": "decreasing"}, 1),
        (FLOW, {"diffusion_form": "sbdm", "last_step": "euler"}, 2),
        (FLOW, {"solver": "heun", "diffusion_form": "constant", "last_step": "none"}, 1),
        (VP, {"diffusion_form": "sigma", "last_step": "none"}, 1),
        (VP, {"diffusion_form": "linear"}, 1),
    ],
)
def test_weak_order_on_a_gaussian(chain, options, order):
    """The last step shrinks with the others, so that nothing but the solver's error is left."""
    steps = (100, 200)
    found = [
        moments(samplers.sde(chain, "sample", count, last_step_size=2 / count, **options), chain) for count in steps
    ]
    # The mean is the ODE's, which on these paths goes through the Gaussian's centre.
    np.testing.assert_allclose([mean for mean, _ in found], MEAN, atol=1e-5)
    errors = [abs(deviation - DEVIATION) for _, deviation in found]
    assert errors[0] < 0.05
    assert order - 0.1 < np.log2(errors[0] / errors[1]) < order + 0.35


@pytest.mark.parametrize(("solver", "ode"), [("euler", samplers.euler), ("heun", samplers.heun)])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_without_diffusion_it_is_the_ode(solver, ode, shift):
    flow = process.RectifiedFlow(t_stop=0.04, shift=shift)
    ours = samplers.sde(flow, "velocity", 9, solver=solver, diffusion_norm=0.0)
    plain = ode(flow, "velocity", 9, spacing_rule="linspace")
    assert not ours.stochastic and samplers.sde(flow, "velocity", 9, solver=solver).stochastic
    for name, column in ours.table._asdict().items():
        np.testing.assert_allclose(column, getattr(plain.table, name), atol=1e-12, err_msg=name)


def test_it_begins_where_everything_is_finite():
    """A network that predicts noise says nothing about the image where there is only noise."""
    flow = process.RectifiedFlow(t_stop=0.5)
    first = {output: samplers.sde(flow, output).timesteps[0] for output in ("velocity", "epsilon", "score")}
    assert first == {"velocity": 1000, "epsilon": 999, "score": 999}
    assert samplers.sde(flow, "velocity", diffusion_form="sbdm").timesteps[0] == 999
    assert samplers.sde(process.VPSDE(), "epsilon", diffusion_form="sbdm").timesteps[0] == 999  # its t_max
    times = samplers.sde(flow, "velocity").timesteps
    np.testing.assert_allclose(np.diff(times), -960 / 249, rtol=1e-9)
    np.testing.assert_allclose(times[-1], 40)  # whatever t_stop is


@pytest.mark.parametrize(
    ("chain", "options", "message"),
    [
        (FLOW, {"solver": "dopri5"}, "solver is 'dopri5'; it can be euler, heun"),
        (FLOW, {"diffusion_form": "SBDM"}, "diffusion_form is 'SBDM'; it can be sigma, constant, sbdm"),
        (FLOW, {"last_step": "Mean"}, "last_step is 'Mean'; it can be mean, tweedie, euler, none"),
        (FLOW, {"diffusion_norm": -1.0}, "diffusion_norm is -1.0; it must be 0 or more"),
        (FLOW, {"last_step_size": 0.0}, "last_step_size is 0.0; it must be above 0"),
        (FLOW, {"last_step_size": 1.0}, "last_step_size is 1.0; it must be above 0"),
        (FLOW, {"num_steps": 1}, "num_steps is 1; it must be 2 or more"),
        (process.EDM(), {}, "needs a process rectified_flow, vp_sde or sub_vp_sde"),
        (process.linear(), {}, "needs a process rectified_flow, vp_sde or sub_vp_sde"),
    ],
)
def test_what_cannot_be_is_refused(chain, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        samplers.sde(chain, "velocity", **options)
    assert "\n" not in str(caught.value)
