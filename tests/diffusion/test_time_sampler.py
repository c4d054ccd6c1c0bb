"""The loss-aware sampler against a list of losses for each timestep, kept one loss at a time."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_jax.diffusion.time_sampler import LossHistory, LossSecondMoment

SAMPLER = LossSecondMoment(5, history=3, uniform_prob=0.01)


def filled(second_moments, sampler=SAMPLER):
    """A full history whose losses have these root mean squares."""
    losses = np.sqrt(second_moments)[:, None] * np.sqrt([0.5, 1.0, 1.5])
    return LossHistory(jnp.asarray(losses, jnp.float32), jnp.full(5, sampler.history))


def one_by_one(draws, history):
    """The losses that a list of the last few for each timestep holds."""
    kept = collections.defaultdict(lambda: collections.deque(maxlen=history))
    for t, loss in draws:
        kept[t].append(loss)
    return kept


batches = st.lists(st.lists(st.integers(0, 4), min_size=7, max_size=7), min_size=1, max_size=6)


@given(batches)
def test_the_history_is_that_of_losses_one_by_one(times):
    """Also where a batch has one timestep more often than the history holds."""
    state, draws, update = SAMPLER.init(), [], jax.jit(SAMPLER.update)
    losses = iter(range(1, 1000))
    for batch in times:
        values = [float(next(losses)) for _ in batch]
        draws += zip(batch, values, strict=True)
        state = update(state, jnp.array(batch, jnp.int32), jnp.array(values))
    kept = one_by_one(draws, SAMPLER.history)
    for t in range(5):
        held = np.asarray(state.losses[t])
        assert sorted(held[held > 0]) == sorted(kept[t])
        assert int(state.count[t]) == sum(1 for time, _ in draws if time == t)
    if all(len(kept[t]) == 3 for t in range(5)):
        size = np.array([np.sqrt(np.mean(np.square(kept[t]))) for t in range(5)])
        np.testing.assert_allclose(SAMPLER.probabilities(state), 0.99 * size / size.sum() + 0.01 / 5, rtol=1e-5)
    else:
        np.testing.assert_allclose(SAMPLER.probabilities(state), 0.2, rtol=1e-6)


def test_one_missing_loss_keeps_the_draws_even():
    state = filled([1, 4, 9, 16, 25])
    np.testing.assert_allclose(
        SAMPLER.probabilities(state), 0.99 * np.array([1, 2, 3, 4, 5]) / 15 + 0.01 / 5, rtol=1e-5
    )
    short = state._replace(count=state.count.at[2].set(2))
    np.testing.assert_allclose(SAMPLER.probabilities(short), 0.2, rtol=1e-6)


def test_draws_follow_the_probabilities_and_weights_undo_them():
    state = filled([0.01, 1, 4, 400, 0.25])
    uniforms = jax.random.uniform(jax.random.key(0), (200_000, 2))
    t, weights = jax.jit(SAMPLER.draw)(state, uniforms)
    probabilities = SAMPLER.probabilities(state)
    np.testing.assert_allclose(np.bincount(t, minlength=5) / len(t), probabilities, atol=2e-3)
    np.testing.assert_allclose(weights, 1 / (5 * probabilities[t]), rtol=1e-6)
    # The mean over timesteps of anything is estimated without bias.
    values = jnp.array([3.0, -1.0, 2.0, 0.5, 10.0])
    np.testing.assert_allclose(jnp.mean(weights * values[t]), values.mean(), rtol=0.1)


def test_the_rarest_timestep_of_thousands_is_drawn_as_often_as_it_says():
    """T = 4000 as in the paper; the rare half lies below what a single float32 uniform resolves."""
    sampler = LossSecondMoment(4000)
    losses = jnp.where(jnp.arange(4000) < 2000, 1e-6, 1.0)[:, None] * jnp.ones((1, 10))
    state = LossHistory(losses, jnp.full(4000, 10))
    t, weights = jax.jit(sampler.draw)(state, jax.random.uniform(jax.random.key(1), (2_000_000, 2)))
    rare = np.asarray(t) < 2000
    assert rare.mean() == pytest.approx(0.001 / 2, rel=0.1)
    assert np.asarray(weights)[rare].mean() == pytest.approx(
        1 / (4000 * (0.001 / 4000 + 0.999 * 1e-6 / 2000)), rel=1e-3
    )


def test_every_timestep_can_be_drawn_and_no_other():
    state = filled([1, 1, 1, 1, 1])
    edge = np.nextafter(np.float32(1), np.float32(0))
    t, _ = SAMPLER.draw(state, jnp.array([[0.5, 0.0], [0.5, edge], [0.0, 0.0], [0.0, edge]]))
    np.testing.assert_array_equal(t, [0, 4, 0, 4])


def test_losses_of_zero_are_drawn_evenly():
    state = LossHistory(jnp.zeros((5, 3)), jnp.full(5, 3))
    np.testing.assert_allclose(SAMPLER.probabilities(state), 0.2, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"history": 0}, "history is 0"), ({"uniform_prob": 0.0}, "uniform_prob is 0.0")],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        LossSecondMoment(5, **arguments)
