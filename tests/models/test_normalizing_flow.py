"""Flows are invertible, and say by how much they stretch space: determinants, quadrature and the way back."""

import itertools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from diffusion_jax.methods.flow.settings import NETWORKS
from diffusion_jax.models.flow_couplings import AffineCoupling, GaussianPrior
from diffusion_jax.models.flow_layers import ActNorm, InvertibleConv, Logit, rotation_factors, squeeze, unsqueeze
from diffusion_jax.models.normalizing_flow import Glow, RealNVP

SMALL = {
    "glow": Glow(levels=1, depth=2, width=6, coupling="convolutional", num_classes=3),
    "glow of two levels": Glow(levels=2, depth=1, width=6, coupling="dense", convolution="plain"),
    "realnvp": RealNVP(levels=2, depth=2, width=6, coupling="convolutional", num_classes=3),
    "realnvp without logits": RealNVP(levels=1, depth=3, width=6, coupling="dense", logit=None),
}


def moved(params, by=0.2):
    """Away from where couplings change nothing."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    return unravel(flat + by * jax.random.normal(jax.random.key(1), flat.shape, flat.dtype))


def images(count=2, size=4, dtype=np.float64):
    return np.random.default_rng(0).uniform(-0.9, 0.9, (count, size, size, 1)).astype(dtype)


def labels_of(network, count=2):
    return None if network.num_classes is None else jnp.arange(count, dtype=jnp.int32) % network.num_classes


@pytest.mark.parametrize("name", SMALL)
def test_the_determinant_is_that_of_the_jacobian_and_the_way_back_is_exact(name):
    network = SMALL[name].clone(dtype="float64")
    with jax.enable_x64(True):
        x, labels = jnp.asarray(images()), labels_of(network)
        params = network.init(jax.random.key(0), x, labels)["params"]
        params = moved(jax.tree.map(lambda leaf: leaf.astype("float64"), params))

        @jax.jit
        def forward(x):
            return network.apply({"params": params}, x, labels)

        @jax.jit
        def backward(z):
            return network.apply({"params": params}, z, labels, reverse=True)

        z, log_det = forward(x)
        jacobian = jax.jit(jax.jacfwd(lambda x: forward(x)[0]))(x)  # [2, 4, 4, 1, 2, 4, 4, 1]
        for row in range(len(x)):
            square = np.asarray(jacobian[row, ..., row, :, :, :]).reshape(16, 16)
            np.testing.assert_allclose(log_det[row], np.linalg.slogdet(square)[1], rtol=1e-9)
            others = np.asarray(jacobian[row, ..., 1 - row, :, :, :])
            assert not others.any()  # an image's likelihood does not hang on the others
        again, back = backward(z)
        np.testing.assert_allclose(again, x, atol=1e-9)
        np.testing.assert_allclose(back, -log_det, rtol=1e-9)
        # finite differences, which know nothing of the program
        step = 1e-6
        steps = np.eye(16).reshape(16, 1, 4, 4, 1) * step
        columns = [(forward(x + s)[0] - forward(x - s)[0])[0].ravel() / (2 * step) for s in steps]
        np.testing.assert_allclose(log_det[0], np.linalg.slogdet(np.stack(columns, 1))[1], rtol=1e-5)
    network = SMALL[name]
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    small = jnp.asarray(images(dtype=np.float32))
    z, _ = network.apply({"params": single}, small, labels)
    np.testing.assert_allclose(network.apply({"params": single}, z, labels, reverse=True)[0], small, rtol=0, atol=1e-5)


def test_a_density_of_two_values_integrates_to_one():
    """Of every layer that can be in it, over images of one by two pixels, by Gauss and Legendre's rule."""
    layers = (
        Logit(0.05),
        ActNorm(),
        AffineCoupling("even", "tanh", "dense", 5),
        AffineCoupling("odd", "sigmoid", "convolutional", 5),
        GaussianPrior("dense"),
    )
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).uniform(-0.9, 0.9, (64, 1, 2, 1)))
        plan = []
        for place, layer in enumerate(layers):
            arguments = (None, None) if isinstance(layer, GaussianPrior) else (None,)
            params = moved(layer.init(jax.random.key(place), x, *arguments), 0.3)
            x, _ = layer.apply(params, x, *arguments)
            plan.append((layer, params, arguments))

        @jax.jit
        def density(x):
            total = 0.0
            for layer, params, arguments in plan:
                x, log_det = layer.apply(params, x, *arguments)
                total = total + log_det
            return jnp.exp(total - 0.5 * jnp.square(x).sum((1, 2, 3)) - jnp.log(2 * jnp.pi))

        nodes, weights = np.polynomial.legendre.leggauss(300)
        reach = 0.5 / 0.45  # where the logits are infinite
        grid = np.stack(np.meshgrid(nodes * reach, nodes * reach), -1).reshape(-1, 1, 2, 1)
        total = (density(jnp.asarray(grid)) * np.outer(weights, weights).ravel()).sum() * reach**2
        np.testing.assert_allclose(total, 1, atol=1e-5)


def test_squares_become_channels_and_come_back():
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)
    squeezed = squeeze(x)
    assert squeezed.shape == (1, 2, 2, 8)
    np.testing.assert_array_equal(squeezed[0, 0, 1], x[0, 0:2, 2:4].transpose(2, 0, 1).ravel())
    np.testing.assert_array_equal(unsqueeze(squeezed), x)


@pytest.mark.parametrize("by_value", [False, True])
def test_the_first_batch_leaves_actnorm_standardised(by_value):
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (500, 2, 2, 3)) * jnp.array([1.0, 5.0, 0.1])
    y, log_det = ActNorm(by_value).init_with_output(jax.random.key(1), x)[0]
    axes = (0,) if by_value else (0, 1, 2)
    np.testing.assert_allclose(y.mean(axes), 0, atol=1e-4)
    np.testing.assert_allclose(y.std(axes), 1, atol=1e-4)
    scale = y[0] - y[1], x[0] - x[1]
    np.testing.assert_allclose(log_det[0], np.log(np.abs(scale[0] / scale[1])).sum(), rtol=1e-3)


@pytest.mark.parametrize("size", [1, 4, 12])
def test_a_convolution_begins_as_the_rotation_that_its_factors_are_of(size):
    permutation, lower, upper, diagonal = rotation_factors(3, size)
    rows = (lower + np.eye(size)) @ (upper + np.diag(diagonal))
    rotation = rows[np.argsort(permutation)]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(size), atol=1e-12)
    x = np.random.default_rng(0).standard_normal((2, 3, 3, size)).astype(np.float32)
    y, log_det = InvertibleConv("lu", seed=3).init_with_output(jax.random.key(0), x)[0]
    np.testing.assert_allclose(y, x @ rotation, atol=1e-5)
    np.testing.assert_allclose(log_det, 0, atol=1e-5)  # a rotation keeps volumes


def test_the_prior_is_a_gaussian_of_the_class_and_of_what_stands_beside():
    prior = GaussianPrior("dense", num_classes=3)
    x, beside, labels = (
        (np.random.default_rng(i).standard_normal((4, 2, 2, 2)) for i in (0, 1)),
        None,
        jnp.arange(4) % 3,
    )
    x, beside = (jnp.asarray(array, jnp.float32) for array in x)
    params = moved(prior.init(jax.random.key(0), x, beside, labels))
    z, log_det = prior.apply(params, x, beside, labels)
    # log N(z; 0, 1) + log |dz/dx| is log N(x; mean, deviation), whose moments the same layer gives of 0 and of 1
    zeros, ones = (prior.apply(params, jnp.full_like(x, value), beside, labels, reverse=True)[0] for value in (0, 1))
    expected = stats.norm.logpdf(x, zeros, ones - zeros).sum((1, 2, 3))
    np.testing.assert_allclose(stats.norm.logpdf(z).sum((1, 2, 3)) + log_det, expected, rtol=1e-4)
    assert jnp.abs(prior.apply(params, x, beside, (labels + 1) % 3)[0] - z).max() > 1e-2
    assert jnp.abs(prior.apply(params, x, -beside, labels)[0] - z).max() > 1e-2


@pytest.mark.parametrize("name", NETWORKS)
def test_the_class_changes_the_latents_and_half_precision_keeps_the_way_back(name):
    network = NETWORKS[name](levels=1, depth=2, width=8, num_classes=2, dtype="bfloat16")
    x = jnp.asarray(images(dtype=np.float32))
    params = moved(network.init(jax.random.key(0), x, jnp.zeros(2, jnp.int32))["params"])
    one, other = (network.apply({"params": params}, x, jnp.full(2, label))[0] for label in (0, 1))
    assert jnp.abs(one - other).max() > 1e-2 and one.dtype == jnp.float32
    np.testing.assert_allclose(
        network.apply({"params": params}, one, jnp.zeros(2, jnp.int32), reverse=True)[0], x, atol=1e-5
    )
    with pytest.raises(ValueError, match="none were given"):
        network.apply({"params": params}, x)


@pytest.mark.parametrize(
    ("network", "size", "message"),
    [
        (Glow(levels=3), 12, "levels=3: each halves the image, and 12 pixels cannot be halved so often"),
        (Glow(width=0), 8, "width=0: it must be an integer from 1 up"),
        (Glow(logit=0.5), 8, "logit=0.5: it must be above 0 and below 0.5, or None"),
        (Glow(coupling="wide"), 8, "coupling='wide': it could be 'convolutional' or 'dense'"),
        (Glow(convolution="qr"), 8, "convolution='qr': it could be 'lu' or 'plain'"),
        (RealNVP(depth=1), 8, "depth=1: it must be 2 or more, as a coupling changes half of the values"),
        (Glow(coupling="dense"), 128, "images of 128x128x1: dense couplings take at most 4096 values an image"),
    ],
)
def test_fields_that_cannot_be(network, size, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        network.validate(size, 1)


def test_every_value_is_changed_by_some_coupling():
    """In each network all values of z depend on all of x, but for what a level has split off."""
    for network in (SMALL["glow"], SMALL["realnvp without logits"]):
        x, labels = jnp.asarray(images(1, dtype=np.float32)), labels_of(network, 1)
        params = moved(network.init(jax.random.key(0), x, labels)["params"])
        jacobian = jax.jacfwd(
            lambda x, network=network, params=params, labels=labels: network.apply({"params": params}, x, labels)[0]
        )(x)
        square = np.abs(np.asarray(jacobian).reshape(16, 16))
        assert all((square[i] > 0).sum() > 1 for i in range(16)) and (square.max(0) > 0).all()
    assert list(itertools.chain(NETWORKS)) == ["glow", "realnvp"]
