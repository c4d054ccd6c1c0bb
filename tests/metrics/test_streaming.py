"""Moments gathered on devices are those of all features in float64, however the features arrive."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_jax import metrics
from diffusion_jax.metrics import streaming
from tests.metrics import worker

FEATURES = worker.features()
UPDATE = jax.jit(streaming.update)
MERGE = jax.jit(streaming.merge)


def stream(features, batch_size):
    moments = streaming.empty(features.shape[1])
    for start in range(0, len(features), batch_size):
        batch = features[start : start + batch_size]
        # What is masked may hold anything, also NaN.
        rest = np.full((batch_size - len(batch), features.shape[1]), np.nan, np.float32)
        moments = UPDATE(moments, np.concatenate([batch, rest]), np.arange(batch_size) < len(batch))
    return moments


def assert_moments(moments, features, tolerance=1e-10):
    mean, covariance, count = streaming.finalize(moments)
    expected_mean, expected_covariance = metrics.moments(features)
    assert count == len(features)
    np.testing.assert_allclose(mean, expected_mean, rtol=tolerance, atol=0)
    scale = np.sqrt(np.outer(np.diag(expected_covariance), np.diag(expected_covariance)))
    np.testing.assert_allclose(covariance / scale, expected_covariance / scale, atol=tolerance)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 150, 600])
def test_moments_are_those_of_float64(batch_size):
    assert_moments(stream(FEATURES, batch_size), FEATURES)


def test_frechet_distance_to_one_in_a_billion():
    """Wide features, many batches, a distance far below the variances: what plain float32 sums get wrong."""
    random = np.random.default_rng(1)
    mixing = random.normal(size=(64, 64)) / 8
    first, second = (
        np.maximum(random.normal(size=(20_000, 64)) @ mixing * scale + 5, 0).astype(np.float32) for scale in (1, 1.01)
    )
    reference = metrics.moments(second)
    exact = metrics.frechet_distance(*metrics.moments(first), *reference)
    mean, covariance, _ = streaming.finalize(stream(first, 250))
    assert metrics.frechet_distance(mean, covariance, *reference) == pytest.approx(exact, rel=1e-9)
    total = sum(np.float32(1) * first[i : i + 250].T @ first[i : i + 250] for i in range(0, 20_000, 250))
    plain = (total - 20_000 * np.outer(mean, mean)) / 19_999
    assert metrics.frechet_distance(mean, plain, *reference) != pytest.approx(exact, rel=1e-6)


def test_many_small_additions_are_not_lost():
    """A running sum of plain float32 stands still at 2^24 ones; compiled, the pair does not."""
    start = streaming.empty(1)
    big = streaming.Pair(start.sum.high + 2.0**24, start.sum.low)
    moments = start._replace(sum=big)

    @jax.jit
    def add_ones(moments):
        return jax.lax.fori_loop(0, 1000, lambda _, m: streaming.update(m, np.ones((1, 1), np.float32)), moments)

    total = add_ones(moments).sum
    assert float(total.high[0]) + float(total.low[0]) == 2.0**24 + 1000


@settings(max_examples=20)
@given(data=st.data(), order=st.permutations(range(4)))
def test_any_split_any_order_any_grouping(data, order):
    """Cuts, permuted rows, permuted and nested merges: one result."""
    cuts = sorted(data.draw(st.lists(st.integers(0, len(FEATURES)), min_size=3, max_size=3)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    shuffled = np.random.default_rng(seed).permutation(FEATURES)
    pieces = [stream(piece, 32) for piece in np.split(shuffled, cuts)]
    a, b, c, d = (pieces[i] for i in order)
    for total in (MERGE(MERGE(a, b), MERGE(c, d)), MERGE(MERGE(MERGE(d, a), c), b)):
        assert_moments(total, FEATURES)


@settings(max_examples=20)
@given(exponent=st.integers(-30, 30), seed=st.integers(0, 2**32 - 1))
def test_any_scale(exponent, seed):
    features = (np.random.default_rng(seed).normal(size=(20, 3)) * 2.0**exponent).astype(np.float32)
    mean, covariance, _ = streaming.finalize(stream(features, 8))
    expected_mean, expected_covariance = metrics.moments(features)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-9 * 2.0**exponent)
    np.testing.assert_allclose(covariance, expected_covariance, atol=1e-9 * 4.0**exponent)


def test_zeros_stay_zero():
    mean, covariance, count = streaming.finalize(stream(np.zeros((5, 3), np.float32), 4))
    assert count == 5
    assert not mean.any()
    assert not covariance.any()


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_devices_change_nothing(devices):
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices]
    )
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    update = jax.jit(streaming.update_shards)
    shards = streaming.empty_shards(worker.DIM, mesh)
    for start in range(0, len(FEATURES), 48):
        batch = FEATURES[start : start + 48]
        padded = np.pad(batch, [(0, 48 - len(batch)), (0, 0)])
        shards = update(shards, jax.device_put(padded, split), jax.device_put(np.arange(48) < len(batch), split))
    # each device has its own moments: nothing was summed over devices on the way
    assert shards.gram.high.addressable_shards[0].data.shape[0] == 1
    assert_moments(streaming.collect(shards, mesh), FEATURES)


DRAWN = ("drawn_mean", "drawn_covariance", "drawn")


def test_two_processes_are_one(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.metrics.worker", str(tmp_path / "moments.npz"), str(port), str(process), "2"],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    outputs = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    with np.load(tmp_path / "moments.npz") as moments:
        alone = streaming.finalize(stream(FEATURES, 64))
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
        drawn = worker.of_images(mesh)
        assert (moments["own"], drawn["own"]) == (8, 16)
        assert moments["content"] == drawn["content"]
        for name in ("features", "logits_unbiased"):
            assert len(drawn[name]) == 40
            np.testing.assert_allclose(moments[name], drawn[name], atol=1e-6)
        for found, expected in (
            ((moments["mean"], moments["covariance"], moments["count"]), alone),
            (tuple(moments[name] for name in DRAWN), tuple(drawn[name] for name in DRAWN)),
        ):
            other = expected[0] + 0.1, 1.1 * expected[1]
            assert found[2] == expected[2]
            assert metrics.frechet_distance(found[0], found[1], *other) == pytest.approx(
                metrics.frechet_distance(expected[0], expected[1], *other), rel=1e-8
            )


def test_bad_features_are_refused():
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        streaming.finalize(stream(FEATURES[:1], 4))
    bad = FEATURES.copy()
    bad[3, 4] = np.nan
    with pytest.raises(ValueError, match="finite"):
        streaming.finalize(stream(bad, 64))
    with pytest.raises(ValueError, match=r"\[B, 3\], got \(2, 4\)"):
        streaming.update(streaming.empty(3), np.zeros((2, 4), np.float32))
