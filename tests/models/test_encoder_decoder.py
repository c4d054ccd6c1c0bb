"""The encoder-decoder: its three transposed convolutions, and that the network denoises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import MODELS
from diffusion_jax.models.encoder_decoder import EncoderDecoder, TransposedConv
from tests.models import light
from tests.models.networks import apply, randomized, shapes


def test_registry_names_the_class():
    assert MODELS["encoder_decoder"] is EncoderDecoder


def test_three_transposed_convolutions_undo_three_halvings():
    tree = shapes(EncoderDecoder(channels=8, channel_mults=(1, 2, 4), num_blocks=1), 8)
    kernels = [tree[f"decoder_{level}"]["conv"]["kernel"].shape for level in range(3)]
    assert kernels == [(4, 4, 32, 16), (4, 4, 16, 8), (4, 4, 8, 8)]
    assert "decoder_3" not in tree


def test_transposed_convolution_spreads_every_pixel_over_a_four_by_four_square():
    layer = TransposedConv(1, jnp.float32)
    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2, 0].set(1.0)
    params = layer.init(jax.random.key(0), x)["params"]
    out = np.asarray(layer.apply({"params": params}, x))[0, :, :, 0]
    assert out.shape == (8, 8)
    square = np.zeros((8, 8))
    square[1:5, 3:7] = params["conv"]["kernel"][::-1, ::-1, 0, 0]  # a dilated correlation
    np.testing.assert_allclose(out, square, atol=1e-6)


def test_the_bottleneck_carries_what_the_image_beside_it_does_not():
    model = EncoderDecoder(out_channels=1, channels=8, channel_mults=(1, 1, 1), num_blocks=1)
    params = randomized(model, 16, 1)
    x = jax.random.normal(jax.random.key(0), (1, 16, 16, 1))
    reach = jax.grad(lambda x: apply(model, params, x, jnp.zeros(1))[0, 0, 0, 0])(x)
    assert np.abs(reach[0, 12:, 12:]).max() > 1e-6  # far beyond the convolutions of the last block


def test_it_denoises():
    light.check_it_denoises(EncoderDecoder(out_channels=1, channels=16, channel_mults=(1, 1, 1), num_blocks=1))


def test_it_is_conditioned():
    light.check_conditioning(
        EncoderDecoder(channels=8, channel_mults=(1, 1, 1), num_blocks=1, num_classes=3, dropout=0.5)
    )


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({}, 12, "image_size=12: it must be a multiple of 8, for example 16"),
        ({"channel_mults": (1, 2)}, 8, "channel_mults=.1, 2.: it must hold 3 numbers"),
        ({"channels": 12}, 8, "channels=12, .* a multiple of 8 channels, one has 12"),
        ({"num_blocks": 0}, 8, "num_blocks=0"),
        ({"dropout": 1.0}, 8, "dropout=1.0"),
        ({"dtype": "int8"}, 8, "dtype='int8'"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(fields, size, message):
    with pytest.raises(ValueError, match=message) as refused:
        EncoderDecoder(**fields).validate(size, 3)
    assert "\n" not in str(refused.value)
