"""A run in parts: however it is cut, it ends in the same bits, which are those of the whole run."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.diffusion import process, samplers
from diffusion_jax.diffusion.samplers import grid
from diffusion_jax.options import options

CHAIN, SDE = process.linear(), process.VPSDE()
SOLVERS = {
    "ddim": samplers.ddim(CHAIN, "epsilon", 8),
    "ddpm": samplers.ddpm(CHAIN, "epsilon", 8),
    "heun": samplers.heun(CHAIN, "v", 4),
    "unipc": samplers.unipc(CHAIN, "epsilon", 8, order=3),
    "edm": samplers.edm(CHAIN, "v", 4, s_churn=4.0),
    "predictor_corrector": samplers.predictor_corrector(SDE, "epsilon", 4),
    "adaptive": samplers.adaptive(SDE, "sample", 6, rtol=1e-3, atol=1e-3),
}
SHAPES = ((16, 64), (64, 64), (64, 16))
WEIGHTS = [0.2 * np.random.default_rng(i).standard_normal(SHAPES[i]).astype(np.float32) for i in range(3)]


def network(x, t):
    """Dense layers; what is elementwise XLA may fuse with the loop around it."""
    first, second, last = WEIGHTS
    hidden = jnp.tanh(x.reshape(len(x), -1) @ first + jnp.sin(t / 100))
    return (jnp.tanh(hidden @ second) @ last).reshape(x.shape)


def elementwise(x, t):
    return jnp.tanh(0.7 * x + 0.3 * jnp.sin(t / 100) - 0.05)


@jax.jit
def start(sampler, x_T, key):
    return samplers.begin(sampler, x_T, key, return_trajectory=True, trajectory_stride=3)


@functools.partial(jax.jit, static_argnums=1)
def part(sampler, predict, run, count):
    return samplers.advance(sampler, predict, run, count)


@jax.jit
def whole(sampler, x_T, key):
    return samplers.sample(sampler, network, x_T, key, trajectory_stride=3)


@pytest.mark.parametrize("predict", [network, elementwise])
@pytest.mark.parametrize("name", SOLVERS)
def test_any_cut_gives_the_same_bits(name, predict):
    sampler, key = SOLVERS[name], jax.random.key(3)
    x_T = sampler.init_noise_sigma * jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    count = sampler.num_evaluations
    expected = whole(sampler, x_T, key) if predict is network else None
    for cuts in ([count], [1] * count, [0, 3, 1, count], [count - 1, 1], [2, 0, count + 5]):
        run = start(sampler, x_T, key)
        for more in cuts:
            run = part(sampler, predict, run, more)
        assert run.place == count
        end = samplers.finish(sampler, run)
        expected = end if expected is None else expected
        for ours, theirs in zip(end, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_one_program_serves_every_part():
    sampler = SOLVERS["ddim"]
    run = part(sampler, network, start(sampler, jnp.ones((1, 4, 4, 1)), jax.random.key(0)), 1)
    compiled = part._cache_size()
    for more in (2, 3, 7):
        run = part(sampler, network, run, more)
    assert part._cache_size() == compiled


def test_a_run_can_be_shown_on_the_way_and_kept():
    """The states of the whole run are those at its places; what is copied to the host and back goes on as well."""
    sampler = SOLVERS["ddpm"]
    x_T = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    noise = np.random.default_rng(2).standard_normal((8, 2, 4, 4, 1)).astype(np.float32)
    _, states = jax.jit(lambda s, x: samplers.sample(s, network, x, noise=noise))(sampler, x_T)
    run = samplers.begin(sampler, x_T, noise=noise)
    for place in range(1, sampler.num_evaluations + 1):
        run = jax.tree.map(jnp.asarray, jax.device_get(part(sampler, network, run, 1)))
        assert run.frames is None
        np.testing.assert_array_equal(run.state.x, states[place])


def test_a_whole_run_can_be_differentiated():
    """By a finite difference, in the direction of all ones."""
    sampler, x_T = SOLVERS["unipc"], jax.random.normal(jax.random.key(1), (1, 4, 4, 1))

    def end(scale):
        return samplers.sample(sampler, network, scale * x_T, return_trajectory=False)[0].sum()

    with jax.enable_x64(True):
        step = 1e-5
        slope = (end(1 + step) - end(1 - step)) / (2 * step)
        np.testing.assert_allclose(jax.grad(end)(1.0), slope, rtol=1e-2)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="this sampler is stochastic"):
        samplers.begin(SOLVERS["ddpm"], jnp.zeros((1, 2, 2, 1)))
    run = samplers.begin(SOLVERS["ddim"], jnp.zeros((1, 2, 2, 1)))
    with pytest.raises(ValueError, match="tilt needs a sampler whose steps are Gaussians"):
        samplers.advance(SOLVERS["ddim"], network, run, 1, tilt=network)


def test_a_solver_of_ones_own_needs_a_start_and_a_step():
    """The iteration x <- f(x) as a Stepper: it runs whole, in parts, and with a trajectory."""

    class Iteration:
        num_evaluations = num_steps = 5
        timesteps = np.zeros(5)
        init_noise_sigma, clip = 1.0, None
        stochastic = learned_variance = has_variance = False

        def init(self, x_T):
            return samplers.State(x_T)

        def step(self, state, i, predict, draw, tilt=None):
            return samplers.State(predict(state.x, jnp.zeros(())))

    x, states = samplers.sample(Iteration(), lambda x, t: x / 2 + 1, jnp.zeros((1, 1)))
    np.testing.assert_allclose(states[:, 0, 0], 2 * (1 - 0.5 ** np.arange(6)))
    run = samplers.begin(Iteration(), jnp.zeros((1, 1)))
    for _ in range(3):
        run = samplers.advance(Iteration(), lambda x, t: x / 2 + 1, run, 2)
    np.testing.assert_array_equal(samplers.finish(Iteration(), run)[0], x)


def test_a_solver_on_a_grid_is_a_function_of_its_points():
    """Its constructor has the options of the points besides its own, and no others."""

    @grid.on_points(num_steps=4, denoise_to_zero=False)
    def straight(points: grid.Grid, factor: float = 1.0):
        """Euler's steps, longer or shorter."""
        return samplers.build(
            [
                points.row(i, x=points.sigma[i + 1] / points.sigma[i], history=(factor * points.alpha[i + 1],))
                for i in range(points.num_steps)
            ]
        )

    assert straight(CHAIN, "sample").num_evaluations == 4
    found = options(straight, ("process", "prediction"))
    assert list(found) == ["num_steps", *(field.name for field in dataclasses.fields(grid.Points)), "factor"]
    assert (found["denoise_to_zero"].default, found["factor"].kind) == (False, float)
    karras = straight(CHAIN, "sample", 3, spacing_rule="karras", sigma_min=0.1, sigma_max=10.0, factor=0.0)
    np.testing.assert_allclose(karras.table.next_x[:, 3], 0)
    np.testing.assert_allclose(np.divide(*karras.table.level[0][::-1]), 10.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'order'"):
        straight(CHAIN, "sample", order=2)
