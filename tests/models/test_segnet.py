"""SegNet: pooling with places and its inverse, and that the network denoises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import MODELS
from diffusion_jax.models.segnet import SegNet, max_pool, max_unpool
from tests.models import light
from tests.models.networks import apply, randomized


def test_pooling_finds_the_maxima_and_their_places():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
    values, index = max_pool(jnp.asarray(x))
    assert values.shape == index.shape == (2, 2, 3, 3)
    for b, i, j, c in np.ndindex(*values.shape):
        square = x[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c].ravel()
        assert values[b, i, j, c] == square.max()
        assert index[b, i, j, c] == square.argmax()


def test_unpooling_puts_them_back():
    x = np.random.default_rng(0).standard_normal((2, 4, 6, 3)).astype(np.float32)
    values, index = max_pool(jnp.asarray(x))
    back = np.asarray(max_unpool(values, index))
    kept = back != 0
    assert kept.sum() == values.size
    np.testing.assert_array_equal(back[kept], x[kept])
    np.testing.assert_array_equal(max_pool(jnp.asarray(np.where(kept, x, -9)))[0], values)
    # other values at the same places
    np.testing.assert_array_equal(max_unpool(values + 10, index) != 0, kept)


def test_of_equal_values_the_first_takes_the_gradient():
    gradient = jax.grad(lambda x: max_pool(x)[0].sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])


def test_the_places_pass_to_the_way_up():
    """With 1x1 convolutions behind the bottleneck and the image hidden, only they tell pixels of a square apart."""
    model = SegNet(out_channels=1, channels=8, channel_mults=(1,), num_blocks=1)
    params = randomized(model, 4, 1)
    for layer in (
        params["decoder_0_0"]["conv"],
        params["last_0"]["conv"],
        params["last_1"]["conv"],
        params["conv_out"],
    ):
        layer["kernel"][[0, 2]] = layer["kernel"][:, [0, 2]] = 0
    params["last_0"]["conv"]["kernel"][:, :, -1] = 0
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 1))
    squares = np.asarray(apply(model, params, x, jnp.zeros(1))).reshape(2, 2, 2, 2)
    assert squares.std(axis=(1, 3)).min() > 1e-2


def test_registry_names_the_class():
    assert MODELS["segnet"] is SegNet


def test_it_denoises():
    light.check_it_denoises(SegNet(out_channels=1, channels=16, channel_mults=(1, 1), num_blocks=1))


def test_it_is_conditioned():
    light.check_conditioning(SegNet(channels=8, channel_mults=(1, 2), num_blocks=1, num_classes=3, dropout=0.5), 0.3)


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({}, 12, "image_size=12: .* pools it 3 times, so it must be a multiple of 8, for example 16"),
        ({"channel_mults": ()}, 8, "channel_mults=()"),
        ({"channels": 12}, 8, "channels=12, .* a multiple of 8 channels, one has 12"),
        ({"channel_mults": (1, 1.3)}, 8, "1.3 times channels=64 is not a whole number"),
        ({"num_blocks": 0}, 8, "num_blocks=0"),
        ({"dropout": 1.0}, 8, "dropout=1.0"),
        ({"dtype": "int8"}, 8, "dtype='int8'"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(fields, size, message):
    with pytest.raises(ValueError, match=message) as refused:
        SegNet(**fields).validate(size, 3)
    assert "\n" not in str(refused.value)
