import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_jax.training import ema


def averages(decay, values, start):
    """The average after each of a list of parameter values."""
    average, history = jnp.float32(start), []
    for step, value in enumerate(values):
        average = ema.update(average, jnp.float32(value), decay(jnp.int32(step)))
        history.append(float(average))
    return history


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20), st.sampled_from([0.0, 0.5, 0.9, 0.99]))
def test_constant_is_the_weighted_sum(values, decay):
    n = len(values)
    weights = [(1 - decay) * decay ** (n - 1 - i) for i in range(n)]
    expected = decay**n * 7.0 + np.dot(weights, values)
    np.testing.assert_allclose(averages(ema.make_ema("constant", decay=decay), values, 7.0)[-1], expected, atol=1e-4)


def test_ddpm_copies_at_the_first_update_and_decays_after_it():
    decay = ema.make_ema("ddpm", decay=0.9)
    np.testing.assert_allclose([decay(jnp.int32(n)) for n in (0, 1, 1000)], [1e-10, 0.9, 0.9], rtol=1e-6)
    np.testing.assert_allclose(averages(decay, [3.0, 5.0], start=100.0), [3.0, 0.9 * 3 + 0.1 * 5], rtol=1e-6)


def test_the_default_is_ddpms():
    decay = ema.make_ema()
    assert float(decay(jnp.int32(0))) < 1e-9 and float(decay(jnp.int32(1))) == pytest.approx(0.9999, abs=1e-7)


def test_warmup_follows_the_number_of_updates():
    decay = ema.make_ema("warmup", decay=0.95)
    expected = [0.1, 2 / 11, 11 / 20, 0.95]
    np.testing.assert_allclose([decay(jnp.int32(n)) for n in (0, 1, 10, 1000)], expected, rtol=1e-6)


def test_edm_forgets_half_in_a_half_life():
    decay = ema.make_ema("edm", half_life=512_000, ramp_up_ratio=0.05, batch_size=512)
    assert float(decay(jnp.int32(0))) == 0.0
    # ramp-up: after n updates the half-life is 5 % of the images seen
    np.testing.assert_allclose(decay(jnp.int32(100)), 0.5 ** (512 / (0.05 * 100 * 512)), rtol=1e-5)
    late = decay(jnp.int32(1_000_000))
    np.testing.assert_allclose(late**1000, 0.5, rtol=1e-4)  # 1000 updates of 512 images are a half-life
    without_ramp = ema.make_ema("edm", half_life=512_000, ramp_up_ratio=float("inf"), batch_size=512)
    np.testing.assert_allclose(without_ramp(jnp.int32(1)), late, rtol=1e-6)


def test_none_is_the_parameters_themselves():
    values = [0.1, -3.3, 1e-20]
    assert averages(ema.make_ema("none"), values, 1e8) == [float(np.float32(v)) for v in values]


def test_update_keeps_tree_and_dtype():
    average = {"a": jnp.ones(3), "b": {"c": jnp.zeros((2, 2))}}
    params = jax.tree.map(lambda leaf: leaf + 1, average)
    updated = ema.update(average, params, jnp.float32(0.75))
    assert jax.tree.map(jnp.shape, updated) == jax.tree.map(jnp.shape, average)
    np.testing.assert_allclose(updated["a"], 1.25)
    np.testing.assert_allclose(updated["b"]["c"], 0.25)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "edn"}, r"ema.kind is 'edn'; it can be .*; did you mean 'edm'\?"),
        ({"kind": "constant", "decay": 1.0}, "ema.decay is 1.0; it must be at least 0 and below 1"),
        ({"kind": "ddpm", "half_life": 1e5}, "ema.half_life is 100000.0, but 'ddpm' does not have it"),
        ({"kind": "edm", "decay": 0.9, "batch_size": 8}, "ema.decay is 0.9, but 'edm' does not have it"),
        ({"kind": "edm", "half_life": 0, "batch_size": 8}, "ema.half_life is 0; it must be above 0"),
        ({"kind": "edm"}, "needs the batch size"),
        ({"kind": "power", "sigma_rel": 0.3}, "ema.sigma_rel is 0.3; it must be above 0 and at most 0.2887"),
        ({"kind": "power", "decay": 0.9}, "ema.decay is 0.9, but 'power' does not have it; it has sigma_rel"),
        ({"kind": "none", "decay": 0.5}, "'none' does not have it; it has nothing"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        ema.make_ema(**arguments)
