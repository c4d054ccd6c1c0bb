"""A variational autoencoder as a method: its bound, and images drawn from latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.conditions.condition import Conditions
from diffusion_jax.conditions.label import Label
from diffusion_jax.data.source import LABEL
from diffusion_jax.diffusion.variational import gaussian_kl
from diffusion_jax.methods import latent_walk
from diffusion_jax.methods.examples import Batch, Metrics, example_keys
from diffusion_jax.methods.variational_autoencoder.likelihoods import Likelihood

# Steps of the walk from one latent to another that an animation shows.
WALK_STEPS = 64
# What is random about an example, or an image that is drawn, by what its key is folded with.
_LATENT, _DROPOUT, _OBSERVED, _PIXELS, _OTHER_LATENT = range(5)


class Bounds(NamedTuple):
    """What is known of log p(x) of images, each [B] in nats, and the means of their latents [B, latent_size].

    Attributes:
      evidence: the evidence lower bound, -reconstruction - kl.
      importance_weighted: log of the mean importance weight, a bound that is as close or closer in expectation.
      reconstruction: the mean of -log p(x | z) over latents of q(z | x).
      kl: KL(q(z | x) || p(z)), in closed form.
    """

    evidence: jax.Array
    importance_weighted: jax.Array
    reconstruction: jax.Array
    kl: jax.Array
    mean: jax.Array


@dataclasses.dataclass(frozen=True)
class VariationalAutoencoder:
    """An encoder, which gives q(z | x), and a decoder, which gives p(x | z), under a prior p(z) = N(0, I).

    Attributes:
      network: with methods encode(image, class_labels, train) -> (mean, log variance), each [B, latent_size], and
        decode(latent, class_labels, train) -> what the likelihood is made of.
      likelihood: p(x | z).
      image_shape: (height, width, channels).
      latent_size: length of z.
      num_classes: None for an unconditional network.
      beta: weight of the KL divergence in the loss (Higgins et al. 2017, eq. 4).
      beta_warmup_steps: in which beta grows from 0.
      draws: what is drawn of p(x | z), its "mean" or a "sample".
    """

    network: nn.Module
    likelihood: Likelihood
    image_shape: tuple[int, int, int]
    latent_size: int
    num_classes: int | None = None
    beta: float = 1.0
    beta_warmup_steps: int = 0
    draws: str = "mean"

    def init(self, key: jax.Array, batch: Batch) -> Any:
        """Parameters for images like those of `batch`."""
        image = jnp.zeros((1, *self.image_shape), batch["image"].dtype)
        return self.network.init(key, image, None if self.num_classes is None else jnp.zeros(1, jnp.int32))["params"]

    def loss(self, params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[jax.Array, Metrics]:
        """The negative evidence lower bound (Kingma and Welling 2014, eq. 10), KL weighted by beta.

        Its two terms are reported too. All are in nats for each value of an image, with one latent for each image.
        """
        keys = example_keys(key, batch)
        image = self.likelihood.observed(_folded(keys, _OBSERVED), batch["image"])
        labels = self._labels(batch)
        told = {"train": True, "rngs": {"dropout": jax.random.fold_in(keys[0], _DROPOUT)}}
        mean, log_variance = self._apply("encode", params, image, labels, **told)
        latent = mean + jnp.exp(0.5 * log_variance) * self._noise(_folded(keys, _LATENT), mean)
        outputs = self._apply("decode", params, latent, labels, **told)
        size = image[0].size
        reconstruction = -self.likelihood.log_probability(image, outputs) / size
        kl = _kl(mean, log_variance) / size
        warm = jnp.minimum(1.0, (step + 1) / self.beta_warmup_steps) if self.beta_warmup_steps else 1.0
        loss = reconstruction + self.beta * warm * kl
        ones = jnp.ones_like(loss)
        return loss.mean(), {"loss": (loss, ones), "reconstruction": (reconstruction, ones), "kl": (kl, ones)}

    @property
    def conditions(self) -> Conditions:
        """The class, if the network is told of it."""
        return {} if self.num_classes is None else {LABEL: Label(self.num_classes)}

    def frames(self, count: int) -> tuple[int, list[str]]:
        """(stride, captions) of about `count` places on the walk from other latents to the images'."""
        stride = max(1, WALK_STEPS // count)
        return stride, [f"{place / WALK_STEPS:.0%}" for place in _places(stride)]

    def draw(
        self, params: Any, keys: jax.Array, condition: Mapping[str, Any], given: Any, frame_stride: int | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """See `methods.method.Drawing`; the frames are images of latents on the way from another latent.

        given: {"temperature": scalar}, the standard deviation of the latents.
        """
        labels = condition.get(LABEL)
        like = jnp.zeros((len(keys), self.latent_size))
        latent = given["temperature"] * self._noise(_folded(keys, _LATENT), like)

        def images(latent: jax.Array) -> jax.Array:
            return self.decode(params, latent, labels, _folded(keys, _PIXELS) if self.draws == "sample" else None)

        if frame_stride is None:
            return images(latent), None
        other = given["temperature"] * self._noise(_folded(keys, _OTHER_LATENT), like)
        walk = latent_walk.spherical(other, latent, WALK_STEPS + 1)[jnp.asarray(_places(frame_stride))]
        frames = jax.lax.map(images, walk)
        return frames[-1], frames

    def reconstruct(self, params: Any, image: jax.Array, labels: jax.Array | None) -> jax.Array:
        """The mean image of the mean latent of each image [B, H, W, C]."""
        labels = None if self.num_classes is None else labels
        mean, _ = self._apply("encode", params, image, labels)
        return self.decode(params, mean, labels)

    def decode(
        self, params: Any, latent: jax.Array, labels: jax.Array | None, keys: jax.Array | None = None
    ) -> jax.Array:
        """The mean image of each latent [B, latent_size]; with keys [B] one drawn from p(x | z)."""
        outputs = self._apply("decode", params, latent, labels)
        return self.likelihood.mean(outputs) if keys is None else self.likelihood.sample(keys, outputs)

    def bounds(
        self, params: Any, image: jax.Array, labels: jax.Array | None, keys: jax.Array, num_samples: int
    ) -> Bounds:
        """Bounds of log p(x) from `num_samples` latents of q(z | x) for each image [B, H, W, C], image i by keys[i].

        The importance-weighted one is Burda et al. 2016, eq. 8.
        """
        labels = None if self.num_classes is None else labels
        image = self.likelihood.observed(_folded(keys, _OBSERVED), image)
        mean, log_variance = self._apply("encode", params, image, labels)

        def add(sums: tuple[jax.Array, jax.Array], sample: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            noise = self._noise(_folded(_folded(keys, _LATENT), sample), mean)
            latent = mean + jnp.exp(0.5 * log_variance) * noise
            log_p = self.likelihood.log_probability(image, self._apply("decode", params, latent, labels))
            # the constants of the two Gaussians are the same
            log_ratio = 0.5 * (jnp.square(noise) + log_variance - jnp.square(latent)).sum(-1)
            log_weights, total = sums
            return (jnp.logaddexp(log_weights, log_p + log_ratio), total + log_p), None

        start = (jnp.full(len(image), -jnp.inf, mean.dtype), jnp.zeros(len(image), mean.dtype))
        (log_weights, total), _ = jax.lax.scan(add, start, jnp.arange(num_samples))
        reconstruction, kl = -total / num_samples, _kl(mean, log_variance)
        return Bounds(-reconstruction - kl, log_weights - jnp.log(num_samples), reconstruction, kl, mean)

    def _labels(self, batch: Batch) -> jax.Array | None:
        return None if self.num_classes is None else batch["condition"][LABEL]

    def _apply(self, method: str, params: Any, *inputs: Any, **options: Any) -> Any:
        return self.network.apply({"params": params}, *inputs, method=method, **options)

    def _noise(self, keys: jax.Array, like: jax.Array) -> jax.Array:
        return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:], like.dtype))(keys)


def _kl(mean: jax.Array, log_variance: jax.Array) -> jax.Array:
    """KL(q(z | x) || N(0, I)) [B] (Kingma and Welling 2014, appendix B)."""
    return gaussian_kl(mean, log_variance, jnp.zeros(()), jnp.zeros(())).sum(-1)


def _folded(keys: jax.Array, number: Any) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _places(stride: int) -> list[int]:
    """Every so many places of the walk, the last among them."""
    return sorted({*range(0, WALK_STEPS, stride), WALK_STEPS})
