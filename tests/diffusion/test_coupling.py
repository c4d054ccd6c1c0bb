"""The optimal-transport coupling against scipy's exact assignment."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P
from jax.sharding import use_abstract_mesh

from diffusion_jax.diffusion.coupling import optimal_assignment, optimal_noise
from diffusion_jax.training import sharding

SOLVE = jax.jit(optimal_assignment)


def check(cost, rtol=1e-7):
    """The permutation is one, and costs what the cheapest does (relative to the range of the costs)."""
    cost = np.asarray(cost, np.float32)
    found = np.asarray(SOLVE(cost))
    np.testing.assert_array_equal(np.sort(found), np.arange(len(cost)))
    rows, columns = scipy.optimize.linear_sum_assignment(cost.astype(np.float64))
    exact, ours = cost.astype(np.float64)[rows, columns].mean(), cost.astype(np.float64)[rows, found].mean()
    assert exact - 1e-12 <= ours <= exact + rtol * max(np.ptp(cost), 1e-30)


@pytest.mark.parametrize("n", [1, 2, 3, 16, 64, 200])
@pytest.mark.parametrize("dimensions", [2, 64, 3072])
def test_the_cost_is_the_smallest(n, dimensions):
    rng = np.random.default_rng(n)
    a, b = rng.normal(size=(2, n, dimensions))
    check(np.sum(a**2, 1)[:, None] + np.sum(b**2, 1) - 2 * a @ b.T)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 5, 8]), st.integers(1, 4))
def test_ties_are_no_trouble(seed, n, values):
    check(np.random.default_rng(seed).integers(0, values, (n, n)))


@pytest.mark.parametrize("kind", ["clusters", "duplicates", "one outlier", "constant", "huge", "tiny"])
def test_awkward_costs(kind):
    rng = np.random.default_rng(3)
    cost = rng.normal(size=(48, 48))
    if kind == "clusters":
        cost = rng.normal(size=(3, 48))[rng.integers(0, 3, 48)] + 1e-3 * cost
    elif kind == "duplicates":
        cost = cost[rng.integers(0, 4, 48)]
    elif kind == "one outlier":
        cost[5, 7] = 1e4
    elif kind == "constant":
        cost = np.full((48, 48), 3.0)
    else:
        cost *= 1e20 if kind == "huge" else 1e-20
    # Of an outlier's range, a level is 4e-7.
    check(cost, rtol=4e-7)


def test_it_ends_on_costs_that_are_not_numbers():
    cost = np.random.default_rng(0).normal(size=(8, 8))
    cost[1, 2], cost[3], cost[:, 4] = np.nan, np.inf, -np.inf
    np.testing.assert_array_equal(np.sort(SOLVE(jnp.asarray(cost, jnp.float32))), np.arange(8))


def test_noise_goes_to_its_image():
    rng = np.random.default_rng(0)
    x0 = rng.normal(size=(32, 4, 4, 3)).astype(np.float32) + 3
    shuffled = rng.permutation(32)
    near = x0[shuffled] + 0.01 * rng.normal(size=x0.shape).astype(np.float32)
    np.testing.assert_array_equal(optimal_noise(x0, near)[shuffled], near)


def test_the_pairs_minimise_squared_distances():
    keys = jax.random.split(jax.random.key(0))
    x0, noise = (jax.random.normal(key, (64, 3, 3, 2)) for key in keys)
    coupled = np.asarray(optimal_noise(10 + 0.3 * x0, noise))
    flat = [np.asarray(x, np.float64).reshape(64, -1) for x in (10 + 0.3 * x0, noise)]
    distances = np.square(flat[0][:, None] - flat[1][None]).sum(-1)
    rows, columns = scipy.optimize.linear_sum_assignment(distances)
    np.testing.assert_array_equal(coupled, np.asarray(noise)[columns])
    assert distances[rows, columns].mean() < distances.trace() / 64  # and that is nearer than they were


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 4}])
def test_rounds_need_no_messages_between_devices(sizes):
    mesh = sharding.make_mesh(**sizes)
    rows = sharding.batch_sharding(mesh)

    def couple(x0, noise):
        with use_abstract_mesh(mesh.abstract_mesh):
            return jax.lax.with_sharding_constraint(optimal_noise(x0, noise), rows)

    x0, noise = (jax.random.normal(key, (64, 4, 4, 1)) for key in jax.random.split(jax.random.key(1)))
    compiled = jax.jit(couple, in_shardings=rows, out_shardings=rows).lower(x0, noise).compile()
    entry, messages = False, []
    for line in compiled.as_text().splitlines():
        if line and not line[0].isspace():
            entry = line.startswith("ENTRY")
        if not entry and re.search(r" (all-reduce|all-gather|collective-permute|all-to-all)[a-z-]*\(", line):
            messages.append(line)
    assert not messages, messages
    out = compiled(*jax.device_put((x0, noise), rows))
    assert out.sharding.spec == P(sharding.BATCH_AXES)
    np.testing.assert_array_equal(out, optimal_noise(x0, noise))
