"""The shared layers against closed forms in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.models.layers import (
    Conv,
    Dense,
    Dropout,
    GroupNorm,
    UpsampleConv,
    average_pool,
    timestep_embedding,
    upsample_nearest,
)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_timestep_embedding_of_ddpm():
    # Ho et al.: sines before cosines, frequencies from 1 down to exactly 1/10000
    embedded = timestep_embedding(jnp.array([0, 999]), 8, flip_sin_to_cos=False, freq_shift=1)
    frequencies = 10_000.0 ** (-np.arange(4) / 3)
    angles = np.array([[0.0], [999.0]]) * frequencies
    np.testing.assert_allclose(embedded, np.concatenate([np.sin(angles), np.cos(angles)], 1), atol=1e-4)


def test_timestep_embedding_of_adm():
    # cosines before sines, the lowest frequency is not 1/10000
    embedded = timestep_embedding(jnp.array([0.5, 700.0]), 8, flip_sin_to_cos=True, freq_shift=0)
    angles = np.array([[0.5], [700.0]]) * 10_000.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(embedded, np.concatenate([np.cos(angles), np.sin(angles)], 1), atol=1e-4)


def test_timestep_embedding_with_odd_channels_ends_with_zero():
    embedded = timestep_embedding(jnp.array([3]), 7, flip_sin_to_cos=False, freq_shift=1)
    assert embedded.shape == (1, 7)
    assert embedded[0, -1] == 0


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_group_norm_is_the_textbook_formula(offset):
    # an offset far above the spread: E[x^2] - E[x]^2 in float32 would lose all digits of the variance
    x = normal(0, 2, 4, 6, 8) + np.float32(offset)
    scale, bias = normal(1, 8), normal(2, 8)
    y = GroupNorm(groups=4, epsilon=1e-3).apply({"params": {"scale": scale, "bias": bias}}, x)
    groups = x.astype(np.float64).reshape(2, 24, 4, 2)
    mean, var = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    expected = ((groups - mean) / np.sqrt(var + 1e-3)).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(y, expected, atol=1e-5 if offset == 0 else 1e-3)


def test_group_norm_keeps_float32_statistics_in_bfloat16():
    x = (normal(0, 2, 8, 8, 4) + 8).astype(jnp.bfloat16)
    params = {"scale": np.ones(4, np.float32), "bias": np.zeros(4, np.float32)}
    low = GroupNorm(2, 1e-6, jnp.bfloat16).apply({"params": params}, x)
    high = GroupNorm(2, 1e-6, jnp.float32).apply({"params": params}, x.astype(np.float32))
    assert isinstance(low, jax.Array) and low.dtype == jnp.bfloat16
    # only the result is rounded (2^-9 relative): rounded statistics would be off by 1e-2 and more
    np.testing.assert_allclose(low.astype(jnp.float32), high, rtol=2**-8, atol=1e-6)


def test_conv_is_a_correlation_with_zero_padding():
    x, kernel, bias = normal(0, 1, 4, 5, 2), normal(1, 3, 3, 2, 3), normal(2, 3)
    y = Conv(features=3).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))  # [B, H, W, C, 3, 3]
    np.testing.assert_allclose(y, np.einsum("bhwcij,ijcf->bhwf", windows, kernel) + bias, atol=1e-5)


def test_upsample_and_average_pool():
    x = normal(0, 2, 3, 4, 5)
    np.testing.assert_array_equal(upsample_nearest(x), x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(average_pool(upsample_nearest(x)), x, rtol=1e-6)
    y = normal(1, 1, 4, 2, 1)
    assert average_pool(y)[0, 1, 0, 0] == pytest.approx(y[0, 2:4, 0:2, 0].mean())


def test_upsample_conv_is_doubling_and_a_convolution():
    x, kernel, bias = normal(0, 2, 3, 4, 5), normal(1, 3, 3, 5, 6), normal(2, 6)
    params = {"kernel": kernel, "bias": bias}
    expected = Conv(features=6).apply({"params": params}, x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(UpsampleConv(features=6).apply({"params": params}, x), expected, atol=1e-5)


def test_one_by_one_convolution_is_a_dense_layer():
    x, kernel, bias = normal(0, 2, 3, 4, 5), normal(1, 5, 6), normal(2, 6)
    conv = Conv(features=6, kernel_size=1, padding=0)
    out = conv.apply({"params": {"kernel": kernel[None, None], "bias": bias}}, x)
    np.testing.assert_allclose(out, x @ kernel + bias, atol=1e-5)
    strided = conv.clone(stride=2).apply({"params": {"kernel": kernel[None, None], "bias": bias}}, x)
    np.testing.assert_allclose(strided, (x @ kernel + bias)[:, ::2, ::2], atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "fan_in", "fan_out"), [(Dense(64), 32, 64), (Conv(64), 9 * 32, 9 * 64)], ids=["dense", "conv"]
)
def test_ddpm_initialisation_is_fan_average_uniform(layer, fan_in, fan_out):
    params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]
    bound = np.sqrt(3 / ((fan_in + fan_out) / 2))
    assert np.abs(params["kernel"]).max() <= bound
    assert np.std(params["kernel"]) == pytest.approx(bound / np.sqrt(3), rel=0.05)
    assert not np.any(params["bias"])


def test_ddpm_last_layer_starts_at_a_tiny_but_nonzero_scale():
    kernel = Conv(64, last=True).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]["kernel"]
    bound = np.sqrt(3e-10 / (9 * (32 + 64) / 2))
    assert 0.9 * bound < np.abs(kernel).max() <= bound


def test_pytorch_initialisation():
    params = Conv(64, initialization="pytorch").init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]
    bound = 1 / np.sqrt(9 * 32)
    for name in ("kernel", "bias"):
        assert np.abs(params[name]).max() <= bound * (1 + 1e-6)
        assert np.std(params[name]) == pytest.approx(bound / np.sqrt(3), rel=0.2)
    last = Conv(64, initialization="pytorch", last=True).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(last))


def test_dropout_is_flaxs_to_the_bit():
    """In place of flax's a resumed run goes on with the masks that it would have drawn."""
    x = jnp.asarray(normal(0, 4, 6, 6, 8))

    class Both(nn.Module):
        dropout: type[nn.Module]

        @nn.compact
        def __call__(self, x):
            x = self.dropout(0.3, deterministic=False)(x)
            return self.dropout(0.1, deterministic=False)(x)

    ours, flaxs = (Both(kind).apply({}, x, rngs={"dropout": jax.random.key(5)}) for kind in (Dropout, nn.Dropout))
    np.testing.assert_array_equal(ours, flaxs)
    assert 0.3 < float((ours == 0).mean()) < 0.45
    assert Dropout(0.3, deterministic=True).apply({}, x) is x
    assert not jnp.any(Dropout(1.0, deterministic=False).apply({}, x, rngs={"dropout": jax.random.key(0)}))
