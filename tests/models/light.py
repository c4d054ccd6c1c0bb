"""What the light denoisers have to show: that they denoise, and that everything they are told matters."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.models.networks import apply, inputs, randomized

STEPS, BATCH = 150, 16


def flat_images(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Noisy images of one grey each, their times on the scale 0..1000, and the noise."""
    grey_key, time_key, noise_key = jax.random.split(key, 3)
    x0 = jnp.broadcast_to(jax.random.normal(grey_key, (BATCH, 1, 1, 1)), (BATCH, 8, 8, 1))
    time = jax.random.uniform(time_key, (BATCH,))
    angle = time[:, None, None, None] * jnp.pi / 2
    noise = jax.random.normal(noise_key, x0.shape)
    return jnp.cos(angle) * x0 + jnp.sin(angle) * noise, 1000 * time, noise


def check_it_denoises(model: nn.Module) -> None:
    """Trained for a moment it predicts the noise far better than any function of one pixel could.

    A pixel alone leaves an error of E[cos^2] = 1/2 at best; all 64 together almost none.
    """
    params = jax.jit(model.init)(jax.random.key(0), *flat_images(jax.random.key(0))[:2])["params"]
    optimizer = optax.adam(3e-3)

    def loss(params, key):
        x, time, noise = flat_images(key)
        return jnp.mean((model.apply({"params": params}, x, time) - noise) ** 2)

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, key)
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), value

        keys = jax.random.split(jax.random.key(1), STEPS)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[1]

    losses = np.asarray(train(params))
    assert losses[0] > 0.9
    assert losses[-STEPS // 5 :].mean() < 0.2


def check_conditioning(model: nn.Module, half_precision: float = 0.05) -> None:
    """The image, the time and the class of one example reach its prediction and no other; dropout in training only.

    half_precision: the relative error allowed in bfloat16. Rounding also moves maxima, which is a jump.
    """
    batch = (sample, time, labels) = inputs(model, 8)
    time = 1000 * time
    params = randomized(model, 8)
    out = np.asarray(apply(model, params, sample, time, labels))
    assert out.shape == sample.shape and out.dtype == np.float32
    for changed in (
        apply(model, params, sample.at[1, 7, 7, 0].add(3.0), time, labels),
        apply(model, params, sample, time.at[1].add(300), labels),
        apply(model, params, sample, time, labels.at[1].set(3)),
    ):
        assert np.abs(changed[1] - out[1]).max() > 1e-2
        np.testing.assert_allclose(changed[::2], out[::2], rtol=1e-4, atol=1e-4)
    trained = apply(model, params, sample, time, labels, train=True, key=jax.random.key(0))
    assert np.abs(trained - out).max() > 1e-2
    rounded = apply(model.clone(dtype="bfloat16"), params, sample, time, labels)
    assert rounded.dtype == jnp.float32
    assert 1e-4 < np.linalg.norm(rounded - out) / np.linalg.norm(out) < half_precision
    fresh = jax.jit(model.init)(jax.random.key(0), *batch)["params"]
    assert np.abs(apply(model, fresh, sample, time, labels)).max() < 1e-3
    with pytest.raises(ValueError, match="none were given"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), sample, time))
