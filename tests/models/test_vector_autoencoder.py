"""Encoders and decoders with a vector between them: shapes, what they are told, and what they refuse."""

import inspect

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.methods.variational_autoencoder.settings import NETWORKS
from diffusion_jax.models.vector_autoencoder import ConvAutoencoder, MLPAutoencoder

SMALL = {
    "mlp": MLPAutoencoder(latent_size=3, image_shape=(8, 4, 1), out_channels=2, width=8, depth=1, num_classes=2),
    "conv": ConvAutoencoder(
        *(3, 2, (8, 4, 1), None, 2), channels=4, channel_mults=(1, 2), norm_groups=2
    ),  # latent_size, out_channels, image_shape, free_shape, num_classes
}


@pytest.fixture(scope="module", params=SMALL)
def trained(request):
    """(network, parameters away from their initial values) of each kind."""
    network = SMALL[request.param]
    params = network.init(jax.random.key(0), jnp.zeros((1, 8, 4, 1)), jnp.zeros(1, jnp.int32))["params"]
    return network, moved(params)


def moved(params):
    """Away from the zeros that they begin with."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return unravel(flat + 0.3 * jax.random.normal(jax.random.key(1), flat.shape))


def test_what_goes_in_and_comes_out(trained):
    network, params = trained
    images = jax.random.normal(jax.random.key(2), (5, 8, 4, 1))
    labels = jnp.array([0, 1, 0, 1, 1])
    mean, log_variance = network.apply({"params": params}, images, labels, method="encode")
    outputs = network.apply({"params": params}, mean, labels, method="decode")
    assert mean.shape == log_variance.shape == (5, 3) and outputs.shape == (5, 8, 4, 2)
    assert {array.dtype for array in (mean, log_variance, outputs)} == {jnp.dtype("float32")}
    np.testing.assert_allclose(network.apply({"params": params}, images, labels), outputs, rtol=1e-5, atol=1e-5)
    # every image for itself, and every output from the whole latent
    alone = network.apply({"params": params}, images[2:3], labels[2:3], method="encode")[0]
    np.testing.assert_allclose(alone[0], mean[2], rtol=1e-4, atol=1e-5)
    slopes = jax.jacobian(lambda z: network.apply({"params": params}, z[None], labels[:1], method="decode"))(mean[0])
    assert (jnp.abs(slopes).max((0, 1, 2, 3)) > 1e-4).all()


def test_both_halves_hear_the_class(trained):
    network, params = trained
    image, latent = jnp.ones((1, 8, 4, 1)), jnp.ones((1, 3))
    for method, given in (("encode", image), ("decode", latent)):
        one, other = (network.apply({"params": params}, given, jnp.array([label]), method=method) for label in (0, 1))
        difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), one, other)
        assert min(jax.tree.leaves(difference)) > 1e-3, method
        with pytest.raises(ValueError, match="none were given"):
            network.apply({"params": params}, given, method=method)


def test_free_parameters_follow_the_outputs():
    """They are given for every channel of every pixel, and no latent changes them."""
    network = MLPAutoencoder(2, out_channels=3, image_shape=(2, 2, 3), free_shape=(1,), width=8, depth=1)
    params = network.init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))["params"]
    assert params["free"].shape == (1,) and params["free"] == 0
    outputs = network.apply({"params": {**params, "free": jnp.array([7.0])}}, jnp.ones((4, 2)), method="decode")
    assert outputs.shape == (4, 2, 2, 6)
    np.testing.assert_array_equal(outputs[..., 3:], 7)
    by_pixel = MLPAutoencoder(2, out_channels=1, image_shape=(2, 2, 1), free_shape=(2, 2, 1), width=8, depth=1)
    params = by_pixel.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))["params"]
    free = jnp.arange(4.0).reshape(2, 2, 1)
    outputs = by_pixel.apply({"params": {**params, "free": free}}, jnp.ones((3, 2)), method="decode")
    np.testing.assert_array_equal(outputs[1, ..., 1], free[..., 0])


def test_dropout_acts_in_training_alone():
    network = MLPAutoencoder(2, width=64, depth=2, dropout=0.5)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    params = network.init(jax.random.key(1), images)["params"]
    params = moved(params)

    def call(train, key):
        return network.apply({"params": params}, images, train=train, rngs={"dropout": jax.random.key(key)})

    assert jnp.abs(call(True, 0) - call(True, 1)).max() > 1e-3
    np.testing.assert_array_equal(call(False, 0), call(False, 1))


@pytest.mark.parametrize("name", NETWORKS)
def test_fields_have_defaults_and_plain_types_and_half_precision_works(name):
    for field, parameter in inspect.signature(NETWORKS[name]).parameters.items():
        if field not in ("name", "parent"):
            assert parameter.default is None or isinstance(parameter.default, (bool, int, float, str, tuple)), field
    network = NETWORKS[name](dtype="bfloat16", image_shape=(16, 16, 1))
    network.validate(16, 1)
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 1))))
    assert set(shapes) == {"params"}
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    out = jax.eval_shape(lambda params: network.apply(params, jnp.zeros((2, 16, 16, 1))), shapes)
    assert (out.shape, out.dtype) == ((2, 16, 16, 1), jnp.float32)


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (MLPAutoencoder(latent_size=0), 8, "latent_size=0: it must be an integer from 1 up"),
        (MLPAutoencoder(dropout=1.0), 8, "dropout=1.0: it must be"),
        (MLPAutoencoder(width=0), 8, "width=0"),
        (ConvAutoencoder(), 6, "image_size=6: the 3 levels .* multiple of 4"),
        (ConvAutoencoder(channel_mults=()), 8, "channel_mults=\\(\\): it must hold"),
        (ConvAutoencoder(channels=24), 8, "widths=.*: each must be a multiple of norm_groups=16"),
        (ConvAutoencoder(num_res_blocks=0), 8, "num_res_blocks=0"),
    ],
)
def test_fields_that_cannot_be(network, size, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        network.validate(size, 1)
    assert "\n" not in str(caught.value)
