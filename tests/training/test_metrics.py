import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.training import gradients, metrics


def test_average_is_weighted_over_steps():
    first = gradients.weighted_sums({"loss": (jnp.array([1.0, 3.0]), jnp.array([1.0, 0.0]))})
    second = gradients.weighted_sums({"loss": (jnp.array([5.0, 7.0]), jnp.array([2.0, 1.0]))})
    collected = metrics.accumulate(metrics.accumulate(None, first), second)
    assert metrics.averages(collected) == {"loss": (1 * 1 + 5 * 2 + 7 * 1) / 4}


def test_scalar_weights_count_for_every_value():
    sums = gradients.weighted_sums({"loss": (jnp.array([1.0, 2.0, 6.0]), jnp.float32(1))})
    np.testing.assert_allclose(sums["loss"], (9, 3))


def test_what_had_no_weight_is_left_out():
    sums = {"loss": (jnp.float32(2), jnp.float32(1)), "loss_noise_1": (jnp.float32(0), jnp.float32(0))}
    assert metrics.averages(metrics.accumulate(None, sums)) == {"loss": 2.0}


def test_sums_survive_json_exactly():
    sums = {name: (jnp.float32(np.pi * 10**k), jnp.float32(k)) for k, name in enumerate(("a", "b", "c"))}
    collected = metrics.accumulate(None, sums)
    again = metrics.from_sums(metrics.to_sums(collected))
    assert metrics.averages(again) == metrics.averages(collected)
    jax.tree.map(np.testing.assert_array_equal, metrics.accumulate(again, sums), metrics.accumulate(collected, sums))


def test_not_finite_stays_visible():
    good, bad = {"loss": (jnp.float32(1), jnp.float32(1))}, {"loss": (jnp.float32("nan"), jnp.float32(1))}
    collected = metrics.accumulate(metrics.accumulate(metrics.accumulate(None, good), bad), good)
    assert np.isnan(metrics.averages(collected)["loss"])
