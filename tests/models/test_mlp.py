"""The residual MLP: what it is told reaches every pixel, and what it cannot do is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models.mlp import MLP

NETWORK = MLP(out_channels=1, width=16, depth=2, num_classes=3, dropout=0.5)
X = jax.random.normal(jax.random.key(0), (4, 4, 4, 1))
T = jnp.array([0, 3, 500, 999])
LABELS = jnp.array([0, 1, 2, 3])


def params():
    """Parameters none of which is zero, as after some training."""
    fresh = NETWORK.init(jax.random.key(0), X, T, LABELS)["params"]
    leaves, tree = jax.tree.flatten(fresh)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([p + 0.1 * jax.random.normal(k, p.shape) for p, k in zip(leaves, keys, strict=True)])


def apply(x=X, t=T, labels=LABELS, **options):
    return NETWORK.apply({"params": params()}, x, t, labels, **options)


def test_a_fresh_network_predicts_zero():
    fresh = NETWORK.init(jax.random.key(0), X, T, LABELS)
    np.testing.assert_array_equal(NETWORK.apply(fresh, X, T, LABELS), 0)


def test_every_pixel_time_and_label_matters_and_images_do_not_mix():
    out = apply()
    assert out.shape == X.shape and out.dtype == jnp.float32
    for changed in (apply(x=X.at[0, 0, 0, 0].add(1.0)), apply(t=T.at[0].set(7)), apply(labels=LABELS.at[0].set(2))):
        assert np.abs(changed[0] - out[0]).min() > 1e-6
        np.testing.assert_allclose(changed[1:], out[1:], atol=1e-6)


def test_dropout_acts_in_training_only():
    trained = apply(train=True, rngs={"dropout": jax.random.key(0)})
    assert np.abs(trained - apply()).max() > 1e-3
    np.testing.assert_array_equal(apply(), apply())


def test_a_scalar_time_is_every_images_time():
    np.testing.assert_array_equal(apply(t=jnp.float32(5)), apply(t=jnp.full(4, 5.0)))


@pytest.mark.parametrize(
    ("fields", "size", "message"),
    [
        ({"width": 7}, 8, "width=7"),
        ({"depth": 0}, 8, "depth=0"),
        ({"dropout": 1.0}, 8, "dropout=1.0"),
        ({}, 128, "128x128x1.*use 'unet'"),
    ],
)
def test_impossible_settings_are_refused(fields, size, message):
    with pytest.raises(ValueError, match=message):
        MLP(**fields).validate(size, 1)


def test_labels_must_fit_the_network():
    with pytest.raises(ValueError, match="none were given"):
        apply(labels=None)
    with pytest.raises(ValueError, match="were given"):
        MLP().init(jax.random.key(0), X, T, LABELS)
