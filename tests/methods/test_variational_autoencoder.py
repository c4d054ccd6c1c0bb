"""The variational autoencoder: its likelihoods, its bounds beside what is known exactly, and a run."""

import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from diffusion_jax import hub, main
from diffusion_jax.config import ConfigError, build
from diffusion_jax.jobs.session import Session
from diffusion_jax.methods.variational_autoencoder.likelihoods import Bernoulli, DiscretisedLogistic, Gaussian
from diffusion_jax.methods.variational_autoencoder.model import VariationalAutoencoder
from tests.configs import tiny_vae

KEYS = jax.random.split(jax.random.key(3), 6)
RNG = np.random.default_rng(0)


def test_bernoulli_is_scipys_and_of_grey_levels_the_cross_entropy():
    logits = RNG.standard_normal((3, 4, 4, 1)).astype(np.float32)
    white = RNG.integers(0, 2, logits.shape)
    image = jnp.asarray(2.0 * white - 1)
    expected = stats.bernoulli.logpmf(white, 1 / (1 + np.exp(-logits.astype(np.float64)))).sum((1, 2, 3))
    np.testing.assert_allclose(Bernoulli().log_probability(image, logits), expected, rtol=1e-5)
    np.testing.assert_allclose(
        Bernoulli().log_probability(0 * image, jnp.zeros_like(image)), -16 * np.log(2), rtol=1e-6
    )
    many = jnp.full((6, 40, 40, 1), 0.5)
    drawn = Bernoulli(binarise=True).observed(KEYS, many)
    assert set(np.unique(drawn)) == {-1, 1} and abs(float((drawn > 0).mean()) - 0.75) < 0.02
    np.testing.assert_array_equal(Bernoulli().observed(KEYS, many), many)


@pytest.mark.parametrize("spread", ["shared", "output", "fixed"])
def test_gaussian_is_scipys(spread):
    likelihood = Gaussian(spread=spread, scale=0.3)
    image = RNG.uniform(-1, 1, (3, 4, 4, 1))
    outputs = RNG.standard_normal((3, 4, 4, 1 if spread == "fixed" else 2))
    location, log_scale = likelihood.parameters(jnp.asarray(outputs))
    expected = stats.norm.logpdf(image, np.asarray(location), np.exp(np.asarray(log_scale))).sum((1, 2, 3))
    np.testing.assert_allclose(
        likelihood.log_probability(jnp.asarray(image), jnp.asarray(outputs)), expected, rtol=1e-5
    )
    start = likelihood.parameters(jnp.zeros((1, 2, 2, outputs.shape[-1])))[1]
    np.testing.assert_allclose(np.exp(start), 0.3, rtol=1e-5)
    if spread != "fixed":
        lowest = likelihood.parameters(jnp.full((1, 2, 2, 2), -50.0))[1]
        np.testing.assert_allclose(np.exp(lowest), likelihood.smallest_scale, rtol=1e-4)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_discretised_logistic_sums_to_one_and_is_differences_of_scipys(levels):
    likelihood = DiscretisedLogistic(levels=levels, scale=0.1)
    with jax.enable_x64(True):
        outputs = jnp.asarray(RNG.standard_normal((5, 1, 1, 2)) * [0.7, 2.0])
        values = np.linspace(-1, 1, levels)
        log_p = np.stack([likelihood.log_probability_of_values(jnp.full((5, 1, 1, 1), v), outputs) for v in values])
        np.testing.assert_allclose(np.exp(log_p).sum(0), 1, atol=1e-10)
        location, log_scale = likelihood.parameters(outputs)
        edges = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2, [np.inf]])
        cdf = [stats.logistic.cdf(edge, np.asarray(location), np.exp(np.asarray(log_scale))) for edge in edges]
        np.testing.assert_allclose(np.exp(log_p), np.diff(np.stack(cdf), axis=0), rtol=1e-6, atol=1e-12)
        # far out in the tails, where differences of the distribution function are 0
        far = likelihood.log_probability_of_values(jnp.full((1, 1, 1, 1), values[-1]), jnp.array([[[[-9.0, -5.0]]]]))
        assert np.isfinite(far).all() and (np.asarray(far) < -20).all()
    image = jnp.asarray(RNG.uniform(-1, 1, (2, 3, 3, 1)), jnp.float32)
    level = (np.asarray(likelihood.observed(None, image)) + 1) / 2 * (levels - 1)
    np.testing.assert_allclose(level, np.round(level), atol=1e-4)


class Linear(nn.Module):
    """x = w z + noise: the posterior is known, and is exact where `widen` is 1."""

    weight: float
    noise: float
    widen: float = 1.0
    latent_size: int = 1

    def encode(self, image, class_labels=None, train=False):
        precision = 1 + (self.weight / self.noise) ** 2
        mean = image.reshape(-1, 1) * self.weight / self.noise**2 / precision
        return mean, jnp.full_like(mean, jnp.log(self.widen / precision))

    def decode(self, latent, class_labels=None, train=False):
        return (self.weight * latent).reshape(-1, 1, 1, 1)


def linear(widen, beta=1.0):
    likelihood = Gaussian(spread="fixed", scale=0.5)
    return VariationalAutoencoder(Linear(0.8, 0.5, widen), likelihood, (1, 1, 1), 1, beta=beta)


def test_the_bound_is_the_likelihood_where_the_posterior_is_exact():
    image = jnp.linspace(-1, 1, 6).reshape(6, 1, 1, 1)
    exact = stats.norm.logpdf(np.asarray(image).ravel(), 0, np.hypot(0.8, 0.5))
    bounds = linear(1.0).bounds({}, image, None, KEYS, 4000)
    np.testing.assert_allclose(bounds.importance_weighted, exact, atol=1e-4)  # every weight is the same
    np.testing.assert_allclose(bounds.evidence, exact, atol=0.1)
    np.testing.assert_allclose(bounds.evidence.mean(), exact.mean(), atol=0.02)


def test_the_importance_weighted_bound_lies_between_and_rises_to_the_likelihood():
    image = jnp.repeat(jnp.linspace(-1, 1, 6), 50).reshape(300, 1, 1, 1)
    keys = jax.random.split(jax.random.key(9), 300)
    exact = stats.norm.logpdf(np.asarray(image).ravel(), 0, np.hypot(0.8, 0.5)).mean()
    wide = linear(4.0)
    found = [wide.bounds({}, image, None, keys, count) for count in (1, 10, 1000)]
    means = [float(bounds.importance_weighted.mean()) for bounds in found]
    assert means[0] < means[1] < means[2] < exact + 0.005
    np.testing.assert_allclose(means[2], exact, atol=0.01)
    # KL(N(m, 4 v) || N(m, v)) is what a posterior four times too wide costs
    gap = 0.5 * (4 - 1 - np.log(4))
    np.testing.assert_allclose(float(found[2].evidence.mean()), exact - gap, atol=0.05)


def test_the_loss_is_the_bound_for_each_value_and_beta_weighs_the_divergence():
    image = jnp.linspace(-1, 1, 6).reshape(6, 1, 1, 1)
    batch = {"image": image, "condition": {}, "position": jnp.arange(6)}
    for beta in (0.0, 1.0, 4.0):
        _, metrics = linear(2.0, beta).loss({}, batch, jax.random.key(0), jnp.int32(0))
        mean, log_variance = (np.asarray(part, np.float64).ravel() for part in Linear(0.8, 0.5, 2.0).encode(image))
        kl = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)
        np.testing.assert_allclose(metrics["kl"][0], kl, rtol=1e-4)
        np.testing.assert_allclose(metrics["loss"][0], metrics["reconstruction"][0] + beta * kl, rtol=1e-4)
    warming = VariationalAutoencoder(Linear(0.8, 0.5), Gaussian("fixed", 0.5), (1, 1, 1), 1, beta_warmup_steps=4)
    _, metrics = warming.loss({}, batch, jax.random.key(0), jnp.int32(0))
    np.testing.assert_allclose(metrics["loss"][0], metrics["reconstruction"][0] + metrics["kl"][0] / 4, rtol=1e-5)


def test_the_gradient_goes_through_what_is_drawn():
    """Beside finite differences of the loss with the same draws."""
    batch = {"image": jnp.full((1, 1, 1, 1), 0.7), "condition": {}, "position": jnp.arange(1)}
    with jax.enable_x64(True):

        def loss(weight):
            network: Any = SimpleNamespace(apply=_applied(weight))
            model = VariationalAutoencoder(network, Gaussian("fixed", 0.5), (1, 1, 1), 1)
            return model.loss({}, batch, jax.random.key(0), jnp.int32(0))[0]

        slope = jax.grad(loss)(0.8)
        np.testing.assert_allclose(slope, (loss(0.8 + 1e-5) - loss(0.8 - 1e-5)) / 2e-5, rtol=1e-6)


def _applied(weight):
    def apply(variables, *inputs, method, **options):
        del variables, options
        if method == "decode":
            return (weight * inputs[0]).reshape(-1, 1, 1, 1)
        return inputs[0].reshape(-1, 1) * weight, jnp.full((1, 1), -1.0) * weight

    return apply


def test_images_are_of_their_keys_class_and_temperature_and_a_walk_ends_in_them():
    config = tiny_vae.get_config()
    model = build.model(config, build.of_classes(10))
    params = model.init(jax.random.key(0), {"image": jnp.zeros((1, 8, 8, 1))})
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), params)
    condition, given = {"label": jnp.arange(6)}, {"temperature": np.float32(1)}
    stride, captions = model.frames(4)
    images, frames = model.draw(params, KEYS, condition, given, stride)
    assert frames.shape == (len(captions), 6, 8, 8, 1)
    np.testing.assert_array_equal(frames[-1], images)
    alone, _ = model.draw(params, KEYS[2:3], {"label": jnp.array([2])}, given, None)
    np.testing.assert_allclose(alone[0], images[2], atol=1e-5)
    other, _ = model.draw(params, KEYS, {"label": jnp.arange(6) + 1}, given, None)
    assert np.abs(np.asarray(other - images)).max() > 0.05
    still = {"temperature": np.float32(0)}
    mean = build.model(_with_mean(config), build.of_classes(10))
    same, _ = mean.draw(params, KEYS, {"label": jnp.zeros(6, jnp.int32)}, still, None)
    np.testing.assert_allclose(same, np.broadcast_to(same[:1], same.shape), atol=1e-6)


def _with_mean(config):
    other = config.copy_and_resolve_references()
    other.sampling.draw = "mean"
    return other


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("vae") / "run"
    assert main.main(["main", "--config", tiny_vae.__file__, "--workdir", str(workdir)]) == 0
    return workdir


def test_a_whole_run_leaves_everything(whole, capsys):
    for name in (
        "samples.png",
        "sampling.gif",
        "interpolation.png",
        "reconstructions.png",
        "latent_plane.png",
        "report.html",
    ):
        assert (whole / name).stat().st_size, name
    scores = json.loads((whole / "evaluation.json").read_text())
    bounds, bits = scores["likelihood"], scores["bits_per_dimension"]
    assert bounds["importance_weighted_bound"] >= bounds["evidence_lower_bound"] and bounds["latents"] == 2
    assert bits["mean"] == pytest.approx(-bounds["importance_weighted_bound"] / (64 * np.log(2)))
    assert bits["uncompressed"] == pytest.approx(np.log2(17))
    text = (whole / "report.html").read_text(encoding="utf-8")
    for words in (
        "A class-conditional variational autoencoder with 2 latents",
        "Importance-weighted bound",
        "KL divergence",
    ):
        assert words in text
    assert text.count("<img") == 6  # samples, real images, reconstructions, walk, plane and animation
    network, params = hub.load(whole)
    assert network.apply({"params": params}, jnp.zeros((1, 8, 8, 1)), jnp.zeros(1, jnp.int32)).shape[:3] == (1, 8, 8)
    capsys.readouterr()
    assert main.main(["main", "--mode", "sample", "--from", str(whole), "--out", str(whole / "out")]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and "draws by steps of noise" in line, line


@pytest.mark.parametrize(
    ("section", "change", "said"),
    [
        ("method", {"beta": -1.0}, "config.method.beta is -1.0; it must be 0 or more"),
        ("likelihood", {"scale": 0.0}, "config.likelihood.scale is 0.0; it must be above 0"),
        ("model", {"latent_size": 0}, "config.model.*latent_size=0: it must be an integer from 1 up"),
        ("data", {"name": "haar_digits", "image_size": 4, "channels": 4}, "which is of images, and config.data.name"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, section, change, said):
    config = tiny_vae.get_config()
    config[section].update(change)
    with pytest.raises(ConfigError, match=said):
        Session(config, tmp_path)
