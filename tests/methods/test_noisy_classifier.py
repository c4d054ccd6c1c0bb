"""The classifier of noisy images: what it is shown in training, and that its gradient guides every kind of sampler."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.diffusion import process, samplers
from diffusion_jax.diffusion.objective import Objective
from diffusion_jax.diffusion.weighting import simple
from diffusion_jax.methods.classifier.noisy_classifier import NoisyClassifier, random_crop
from diffusion_jax.methods.diffusion.guiding import Guidance
from diffusion_jax.methods.diffusion.model import Diffusion
from diffusion_jax.methods.examples import NOISE_BINS

CHAIN = process.cosine(50)
SHAPE = (16, 16, 4)


class Power(nn.Module):
    """Logits (a, 0), where a is the power of the image over that of the noise at the time it is told of."""

    @nn.compact
    def __call__(self, sample, timestep, train=False):
        bias = self.param("bias", nn.initializers.zeros, ())
        power = jnp.mean(sample**2, (1, 2, 3)) / CHAIN.sigma(timestep) ** 2 + bias
        return jnp.stack([power, jnp.zeros_like(power)], -1)


def batch_of(size):
    return {
        "image": jnp.zeros((size, *SHAPE)),
        "condition": {"label": jnp.zeros(size, jnp.int32)},
        "position": jnp.arange(size, dtype=jnp.int32),
    }


CLASSIFIER = NoisyClassifier(Power(), CHAIN, SHAPE, 2)


def test_the_network_sees_the_noise_of_the_time_that_it_is_told():
    batch = batch_of(200)
    params = CLASSIFIER.init(jax.random.key(0), batch)
    loss, metrics = CLASSIFIER.loss(params, batch, jax.random.key(1), jnp.int32(0))
    power = -np.log(np.expm1(np.asarray(metrics["loss"][0], np.float64)))  # from log(1 + exp(-a))
    np.testing.assert_allclose(power, 1, atol=0.25)
    assert power.std() > 0.01  # noise of their own
    np.testing.assert_allclose(loss, metrics["loss"][0].mean(), rtol=1e-6)
    assert (metrics["accuracy"][0] == 1).all()
    shares = [metrics[f"loss_noise_{i + 1}_of_{NOISE_BINS}"][1].mean() for i in range(NOISE_BINS)]
    np.testing.assert_allclose(shares, 1 / NOISE_BINS, atol=0.1)
    np.testing.assert_allclose(sum(shares), 1)


def test_the_loss_of_an_example_depends_on_its_position_and_not_on_its_neighbours():
    batch = batch_of(8)
    params = CLASSIFIER.init(jax.random.key(0), batch)
    whole = CLASSIFIER.loss(params, batch, jax.random.key(1), jnp.int32(0))[1]["loss"][0]
    part = jax.tree.map(lambda leaf: leaf[5:], batch)
    alone = CLASSIFIER.loss(params, part, jax.random.key(1), jnp.int32(0))[1]["loss"][0]
    np.testing.assert_allclose(alone, whole[5:], rtol=1e-5)


def test_a_crop_is_an_enlarged_part_of_the_image():
    side, least = 64, 0.5
    ramp = jnp.linspace(-0.9, 0.9, side)
    image = jnp.stack(jnp.meshgrid(ramp, ramp, indexing="ij"), -1)
    keys = jax.random.split(jax.random.key(0), 200)
    crops = np.asarray(jax.vmap(random_crop, (0, None, None))(keys, image, least))[:, 8:-8, 8:-8]
    slopes = (crops[:, -1, 0, 0] - crops[:, 0, 0, 0]) / (crops.shape[1] - 1) / float(ramp[1] - ramp[0])
    np.testing.assert_allclose((crops[:, 0, -1, 1] - crops[:, 0, 0, 1]), slopes * float(ramp[47] - ramp[0]), rtol=2e-2)
    assert least * 0.98 <= slopes.min() < 0.55 and 0.95 < slopes.max() <= 1.02
    middles = crops.mean((1, 2))
    assert np.abs(middles).max() <= 0.9 * (1 - least) + 0.02
    assert np.abs(np.corrcoef(middles.T)[0, 1]) < 0.3  # rows and columns move apart
    np.testing.assert_allclose(random_crop(keys[0], image, 1.0), image, atol=1e-6)


class Bright(nn.Module):
    """Class 1 of two is the brighter one."""

    @nn.compact
    def __call__(self, sample, timestep, train=False):
        gain = self.param("gain", lambda key: jnp.float32(5))
        return jnp.stack([jnp.zeros(len(sample)), gain * sample.mean((1, 2, 3))], -1)


class Standard(nn.Module):
    """The velocity of unit normal pixels is 0 at any time of a variance-preserving process."""

    @nn.compact
    def __call__(self, sample, timestep, class_labels=None, train=False):
        assert class_labels is None  # an unconditional network is told of none
        return self.param("scale", lambda key: jnp.zeros(())) * sample


SAMPLERS = {
    "ddpm": samplers.ddpm(CHAIN, "v", 10, variance="fixed_small"),
    "ddim": samplers.ddim(CHAIN, "v", 10, clip=1.0),
    "heun": samplers.heun(CHAIN, "v", 10),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_unconditional_network_draws_the_class_that_is_asked_for(name):
    method = Diffusion(
        Standard(), Objective(CHAIN, "v", simple()), SAMPLERS[name], (2, 2, 1), guidance=Guidance(classifier=Bright())
    )
    params, classifier = {"scale": jnp.zeros(())}, {"gain": jnp.float32(5)}
    keys, labels = jax.random.split(jax.random.key(0), 64), jnp.arange(64) % 2

    def drawn(method, condition, scale):
        return method.sample(
            params, keys, condition, classifier_params=classifier, classifier_scale=jnp.float32(scale)
        )[0].mean((1, 2, 3))

    means = drawn(method, {"label": labels}, 4.0)
    assert means[1::2].min() > 0 > means[::2].max()
    plain = dataclasses.replace(method, guidance=Guidance())
    np.testing.assert_allclose(drawn(method, {"label": labels}, 0.0), drawn(plain, {}, 0.0), atol=1e-5)
    assert math.isclose(float(drawn(plain, {}, 0.0).mean()), 0, abs_tol=0.2)
