"""RePaint's walk: its order as the paper's code has it, and that known parts steer the new ones."""

import itertools

import jax
import numpy as np
import pytest

from diffusion_jax.diffusion import samplers
from diffusion_jax.diffusion.samplers.repaint import repaint_on, visits
from diffusion_jax.hub.schedule import Schedule
from diffusion_jax.pipelines.known import replace_known
from tests.pipelines import tiny


def papers_times(total, jump_length, resamples):
    """Appendix B of Lugmayr et al. 2022, as a list of visited levels; -1 is the image."""
    jumps = {j: resamples - 1 for j in range(0, total - jump_length, jump_length)}
    t, times = total, []
    while t >= 1:
        t -= 1
        times.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                times.append(t)
    return [*times, -1]


@pytest.mark.parametrize(("total", "jump", "resamples"), [(12, 3, 2), (10, 5, 3), (6, 1, 1)])
def test_the_walk_is_the_papers(total, jump, resamples):
    """The pairs of its list that go down; ours count levels from the image, which is 0 here and -1 there."""
    times = papers_times(total, jump, resamples)
    down = [here + 1 for here, following in itertools.pairwise(times) if following < here]
    assert [here for here, _ in visits(total, jump, resamples)] == down


def test_without_resampling_it_is_ddpm():
    schedule = Schedule(tiny.DDIM).with_solver("ddpm")
    base = schedule.sampler(20)
    walk = repaint_on(base, *schedule.levels(base), jump_length=5, resamples=1)
    np.testing.assert_allclose(walk.table.noise[:-1], base.table.noise[:-1], rtol=1e-9)
    np.testing.assert_allclose(walk.table.next_x[:, 3:].sum(axis=1), base.table.next_x[:, 3:].sum(axis=1), rtol=1e-9)


def test_a_pixel_that_follows_another_is_found():
    """Images of two equal pixels, uniformly +-0.5, one of which is known: the other must become it.

    The exact denoiser is known in closed form; resampling is what joins the two pixels.
    """
    schedule = Schedule(tiny.DDIM)
    sampler = schedule.repaint(50, jump_length=5, resamples=5)
    alpha, sigma = schedule.levels(schedule.with_solver("ddpm").sampler(50))
    times = schedule.with_solver("ddpm").sampler(50).timesteps

    def predict(x, t):
        index = jax.numpy.argmin(jax.numpy.abs(jax.numpy.asarray(times, x.dtype) - t))
        a, s = (jax.numpy.asarray(column, x.dtype)[index] for column in (alpha, sigma))
        mean = 0.5 * jax.numpy.tanh(0.5 * a * x.sum(axis=2, keepdims=True) / s**2)
        return (x - a * mean) / s

    known = np.where(np.arange(64) % 2, 0.5, -0.5).astype(np.float32)[:, None, None, None]
    known = np.broadcast_to(known, (64, 1, 2, 1))
    mask = np.zeros((64, 1, 2, 1), np.float32)
    mask[:, :, 1] = 1
    start = np.random.default_rng(0).standard_normal(known.shape).astype(np.float32)
    painted, _ = jax.jit(
        lambda x: samplers.sample(
            sampler, replace_known(sampler, predict, jax.numpy.asarray(known), mask), x, jax.random.key(0),
            return_trajectory=False,
        )
    )(start)  # fmt: skip
    agree = np.sign(painted[:, 0, 1, 0]) == np.sign(known[:, 0, 1, 0])
    assert agree.mean() > 0.95
    np.testing.assert_allclose(painted[:, 0, 0, 0], known[:, 0, 0, 0], atol=1e-5)


def test_counts_below_one_are_refused():
    with pytest.raises(ValueError, match="jump_length is 0"):
        Schedule(tiny.DDIM).repaint(10, jump_length=0)
