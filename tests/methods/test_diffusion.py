"""The diffusion method: its randomness, its labels and its guidance, on a network small enough to read."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from diffusion_jax.conditions.label import Label
from diffusion_jax.diffusion import process, samplers
from diffusion_jax.diffusion.objective import Objective
from diffusion_jax.diffusion.time_sampler import LossSecondMoment
from diffusion_jax.diffusion.weighting import simple
from diffusion_jax.methods.augmentation import Augmentation
from diffusion_jax.methods.diffusion.guiding import Guidance, interval_in_timesteps
from diffusion_jax.methods.diffusion.model import Diffusion
from diffusion_jax.methods.examples import NOISE_BINS
from diffusion_jax.models.mlp import MLP

CHAIN = process.cosine(50)


class Echo(nn.Module):
    """Its output is the embedding of its label, so that what it was told can be read from it."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, sample, timestep, class_labels=None, train=False):
        table = self.param("table", lambda key: jnp.arange(self.num_classes + 1, dtype=jnp.float32))
        return jnp.broadcast_to(table[class_labels][:, None, None, None], sample.shape)


def method_with(network, **options):
    sampler = samplers.ddim(CHAIN, "sample", 4, clip=None)
    objective = Objective(CHAIN, "sample", simple())
    return Diffusion(network, objective, sampler, (2, 2, 1), **{"told": {"label": Label(3)}, **options})


def batch_of(size):
    return {
        "image": jnp.zeros((size, 2, 2, 1)),
        "condition": {"label": jnp.arange(size, dtype=jnp.int32) % 3},
        "position": jnp.arange(size, dtype=jnp.int32),
    }


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_labels_are_dropped_at_the_asked_rate(share):
    method = method_with(Echo(), label_dropout=share)
    batch = batch_of(999)
    params = method.init(jax.random.key(0), batch)
    # With x_0 = 0 the loss is the label's embedding squared: 9 for the null class, 0, 1 or 4 for the others.
    _, metrics = method.loss(params, batch, jax.random.key(1), jnp.int32(0))
    dropped = metrics["loss"][0] == 9
    np.testing.assert_allclose(dropped.mean(), share, atol=0.05)
    np.testing.assert_array_equal(metrics["loss"][0][~dropped], (batch["condition"]["label"] ** 2)[~dropped])


def test_loss_of_an_example_depends_on_its_position_and_not_on_its_neighbours():
    method = method_with(MLP(out_channels=1, width=16, depth=1, num_classes=3, dropout=0.0), label_dropout=0.5)
    batch = batch_of(12)
    params = jax.tree.map(lambda p: p + 0.1, method.init(jax.random.key(0), batch))
    key = jax.random.key(4)
    whole = method.loss(params, batch, key, jnp.int32(0))[1]["loss"][0]
    order = np.array([7, 0, 11, 3])
    part = method.loss(params, jax.tree.map(lambda value: value[order], batch), key, jnp.int32(0))[1]["loss"][0]
    np.testing.assert_allclose(part, whole[order], rtol=1e-5)
    assert len(np.unique(whole)) == 12


def test_the_noise_bins_split_the_loss():
    method = method_with(Echo())
    batch = batch_of(400)
    loss, metrics = method.loss(method.init(jax.random.key(0), batch), batch, jax.random.key(1), jnp.int32(0))
    bins = [metrics[f"loss_noise_{i + 1}_of_{NOISE_BINS}"] for i in range(NOISE_BINS)]
    np.testing.assert_array_equal(sum(weights for _, weights in bins), 1)
    np.testing.assert_allclose(sum((v * w).sum() for v, w in bins) / 400, loss, rtol=1e-5)
    assert all(65 < weights.sum() < 135 for _, weights in bins)


def test_sampling_follows_the_label_and_guidance_goes_beyond_it():
    method = method_with(Echo())
    params = {"table": jnp.array([0.0, 0.2, 0.4, 0.1])}
    keys = jax.random.split(jax.random.key(0), 3)
    labels = jnp.array([0, 1, 2])
    plain, _ = method.sample(params, keys, {"label": labels})
    np.testing.assert_allclose(plain[:, 0, 0, 0], [0, 0.2, 0.4], atol=1e-5)
    guided, _ = method.sample(params, keys, {"label": labels}, jnp.float32(2.0))
    np.testing.assert_allclose(guided[:, 0, 0, 0], [-0.1, 0.3, 0.7], atol=1e-5)
    same, _ = method.sample(params, keys, {"label": labels}, jnp.float32(1.0))
    np.testing.assert_allclose(same, plain, atol=1e-6)


class WithVariance(nn.Module):
    """Echo with a second half of channels that a sampler takes for the variance: 1 for the null class, else -1."""

    @nn.compact
    def __call__(self, sample, timestep, class_labels=None, train=False):
        mean = Echo(name="mean")(sample, timestep, class_labels)
        fraction = jnp.where(class_labels == 3, 1.0, -1.0)[:, None, None, None]
        return jnp.concatenate([mean, jnp.broadcast_to(fraction, sample.shape)], axis=-1)


def test_guidance_leaves_the_learned_variance_alone():
    """The variance is the condition's, as in DiT's and OpenAI's samplers; other samplers ignore that half."""
    keys, labels = jax.random.split(jax.random.key(0), 3), jnp.array([0, 1, 2])
    params = {"mean": {"table": jnp.array([0.0, 0.2, 0.4, 0.1])}}
    plain = {"table": params["mean"]["table"]}

    def states(network, params, **options):
        sampler = samplers.ddpm(CHAIN, "sample", 4, clip=None, **options)
        method = method_with(network)
        # The states on the way: the last step lands on the estimate of x_0, whatever the variance was.
        return dataclasses.replace(method, sampler=sampler).sample(
            params, keys, {"label": labels}, jnp.float32(3.0), 1
        )[1]

    learned = states(WithVariance(), params, variance="learned_range")
    np.testing.assert_allclose(learned, states(Echo(), plain, variance="fixed_small"), atol=1e-5)
    ignored = states(WithVariance(), params, variance="fixed_large")
    np.testing.assert_allclose(ignored, states(Echo(), plain, variance="fixed_large"), atol=1e-5)
    assert np.abs(ignored - learned).max() > 1e-3


def test_trajectory_starts_in_noise_and_ends_in_the_image():
    method = method_with(Echo())
    params = method.init(jax.random.key(0), batch_of(2))
    images, trajectory = method.sample(
        params, jax.random.split(jax.random.key(0), 2), {"label": jnp.array([0, 1])}, trajectory_stride=2
    )
    assert trajectory is not None and trajectory.shape == (3, 2, 2, 2, 1)
    np.testing.assert_allclose(jnp.clip(trajectory[-1], -1, 1), images, atol=1e-6)
    assert trajectory[0].std() > 0.3


def test_unconditional_network_gets_no_labels():
    method = method_with(MLP(out_channels=1, width=16, depth=1), told={})
    batch = batch_of(4)
    params = method.init(jax.random.key(0), batch)
    loss, _ = method.loss(params, batch, jax.random.key(1), jnp.int32(0))
    images, _ = method.sample(params, jax.random.split(jax.random.key(0), 2), {})
    assert np.isfinite(loss) and images.shape == (2, 2, 2, 1)


def guided_levels(**options):
    """What guidance by 2 adds to samples of class 1, with the sampler's noise levels as they come."""
    params = {"table": jnp.array([0.0, 0.2, 0.4, 0.1])}
    keys, labels = jax.random.split(jax.random.key(0), 2), jnp.array([1, 1])
    method = method_with(Echo(), guidance=Guidance(**options))
    return method.sample(
        params, keys, {"label": labels}, jnp.float32(2.0), guide_params={"table": jnp.array([0.0, -0.3])}
    )[0]


def test_guidance_acts_in_its_interval_only():
    _, most = CHAIN.ratio_range()
    # The last evaluation, at the least noise of the sampler's, decides what Echo's samples are.
    np.testing.assert_allclose(guided_levels(interval=(0.0, most)), 0.3, atol=1e-5)
    np.testing.assert_allclose(guided_levels(interval=(0.9 * most, 2 * most)), 0.2, atol=1e-5)
    timesteps = samplers.ddpm(CHAIN, "sample", 4, clip=None).timesteps
    low, high = interval_in_timesteps((CHAIN.ratios[10], CHAIN.ratios[30]), CHAIN, "sample")
    np.testing.assert_allclose([low, high], [10, 30], atol=1e-9)
    assert interval_in_timesteps((0.0, 1e9), CHAIN, "sample") == (-np.inf, np.inf)
    assert timesteps[-1] == 0


def test_a_guide_takes_the_place_of_the_null_class():
    class Weak(Echo):
        num_classes: int = 1

    # 0.2 + (0.2 - -0.3), told the class; the guide's own table has -0.3 for class 1.
    guided = guided_levels(guide=Weak(), guide_is_conditional=True)
    np.testing.assert_allclose(guided, 0.7, atol=1e-5)


def test_only_the_first_channels_are_guided():
    params = {"table": jnp.array([0.0, 0.2, 0.4, 0.1])}
    method = dataclasses.replace(method_with(Echo(), guidance=Guidance(channels=1)), image_shape=(2, 2, 2))
    images, _ = method.sample(
        params, jax.random.split(jax.random.key(0), 1), {"label": jnp.array([1])}, jnp.float32(2.0)
    )
    np.testing.assert_allclose(images[0, 0, 0], [0.3, 0.2], atol=1e-5)


def test_the_coupling_permutes_the_noise_of_the_whole_batch():
    plain, coupled = method_with(Echo()), method_with(Echo(), coupling="optimal_transport")
    batch = {**batch_of(8), "image": jax.random.normal(jax.random.key(3), (8, 2, 2, 1))}
    before, after = (method.prepare((), batch, jax.random.key(1)) for method in (plain, coupled))
    cost = lambda prepared: jnp.sum((prepared["image"] - prepared["noise"]) ** 2)  # noqa: E731
    assert cost(after) < cost(before)
    order = lambda noise: np.sort(np.asarray(noise)[:, 0, 0, 0])  # noqa: E731
    np.testing.assert_array_equal(order(after["noise"]), order(before["noise"]))
    np.testing.assert_array_equal(after["time"], before["time"])


class Told(nn.Module):
    """Shows the labels of the augmentation."""

    @nn.compact
    def __call__(self, sample, timestep, class_labels=None, train=False, augment_labels=None):
        told = jnp.zeros(len(sample)) if augment_labels is None else augment_labels.sum(-1)
        return self.param("one", nn.initializers.ones, ()) * jnp.broadcast_to(told[:, None, None, None], sample.shape)


def test_the_network_is_told_of_augmentation_in_training_and_of_none_in_samples():
    augmented = method_with(Told(), told={}, augmentation=Augmentation(1.0))
    batch, key = batch_of(8), jax.random.key(1)
    params = augmented.init(jax.random.key(0), batch)
    prepared = augmented.prepare((), batch, key)
    loss = augmented.loss(params, prepared, key, jnp.int32(0))[1]["loss"][0]
    np.testing.assert_allclose(loss, prepared["augment_labels"].sum(-1) ** 2, rtol=1e-4)
    assert len(np.unique(loss)) == 8
    images, _ = augmented.sample(params, jax.random.split(key, 2), {})
    np.testing.assert_allclose(images, 0, atol=1e-5)


def test_times_follow_the_losses_that_are_remembered():
    sampler = LossSecondMoment(50, history=2, uniform_prob=0.01)
    objective = Objective(CHAIN, "sample", simple(), time_sampler=sampler)
    method = dataclasses.replace(method_with(Echo()), objective=objective)
    losses = jnp.where(jnp.arange(50) == 7, 10.0, 0.0)[:, None] * jnp.ones((1, 2))
    state = method.init_state()._replace(losses=losses, count=jnp.full(50, 2))
    batch = batch_of(200)
    prepared = method.prepare(state, batch, jax.random.key(0))
    assert (prepared["time"] == 7).mean() > 0.95
    np.testing.assert_allclose(prepared["importance"][prepared["time"] == 7], 1 / (50 * (0.99 + 0.01 / 50)), rtol=1e-5)
    _, metrics = method.loss(method.init(jax.random.key(0), batch), prepared, jax.random.key(0), jnp.int32(0))
    after = method.update_state(state, prepared, metrics)
    assert (after.count - state.count).sum() == 200
