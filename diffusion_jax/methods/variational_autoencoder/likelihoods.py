"""Distributions p(x | z) of an image, made of what a decoder gives for each of its values.

Images are float [B, H, W, C] in [-1, 1]. Probabilities are in nats, summed over the values of an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.options import check_choice, check_least, described

SCALES = ("shared", "pixel", "output", "fixed")


class Likelihood:
    """What the distributions have in common.

    Attributes:
      num_outputs: what the decoder gives for each value of an image, of a latent.
      levels: how many grey levels have a probability each; None where values have a density, or one of black and white.
      unit: what a probability is of, in print.
    """

    num_outputs: int = 1
    levels: int | None = None
    unit: ClassVar[str]

    def free_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...] | None:
        """The shape of further parameters that do not depend on the latent; None for none."""
        del image_shape
        return None

    def observed(self, keys: jax.Array, image: jax.Array) -> jax.Array:
        """What the model is of, such as the image in black and white; keys [B] draw what is random about it."""
        del keys
        return image

    def log_probability(self, image: jax.Array, outputs: jax.Array) -> jax.Array:
        """log p(x | z) [B] of an image as `observed` gives it, from the decoder's outputs."""
        raise NotImplementedError

    def mean(self, outputs: jax.Array) -> jax.Array:
        """The mean of the image [B, H, W, C] in [-1, 1]."""
        raise NotImplementedError

    def sample(self, keys: jax.Array, outputs: jax.Array) -> jax.Array:
        """An image drawn from the distribution [B, H, W, C] in [-1, 1], image i with keys[i]."""
        raise NotImplementedError


@described(binarise="images become black and white, each value white by its grey level, anew at every step")
@dataclasses.dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Each value is white with the probability whose logit the decoder gives (Kingma and Welling 2014, appendix C.1).

    Of black and white images it is a likelihood. Of grey ones it is the cross entropy with the grey level as the
    probability, which is no density over grey levels: `binarise` draws black and white images from them, as
    Burda et al. 2016, section 5.1.
    """

    binarise: bool = False
    unit: ClassVar = "nats of black and white values"

    def observed(self, keys: jax.Array, image: jax.Array) -> jax.Array:
        if not self.binarise:
            return image
        return jnp.where(_uniform(keys, image) < (image + 1) / 2, 1.0, -1.0).astype(image.dtype)

    def log_probability(self, image: jax.Array, outputs: jax.Array) -> jax.Array:
        white = (image + 1) / 2
        return _of_images(white * jax.nn.log_sigmoid(outputs) + (1 - white) * jax.nn.log_sigmoid(-outputs))

    def mean(self, outputs: jax.Array) -> jax.Array:
        return 2 * jax.nn.sigmoid(outputs) - 1

    def sample(self, keys: jax.Array, outputs: jax.Array) -> jax.Array:
        return jnp.where(_uniform(keys, outputs) < jax.nn.sigmoid(outputs), 1.0, -1.0)


@described(
    spread="what is learned of the scale: one shared number, one for each pixel, an output of the decoder; or fixed",
    scale="the scale where it is fixed, and where learning begins; values are from -1 to 1",
    smallest_scale="to which learning keeps the scale, as no density should grow without end",
)
@dataclasses.dataclass(frozen=True)
class Scaled(Likelihood):
    """A location and a scale for each value. A scale that is learned makes the weight of the KL term follow from the
    data (Rybkin et al. 2021, section 3); the bound from below is soft, as in their appendix.
    """

    spread: str = "shared"
    scale: float = 0.2
    smallest_scale: float = 1e-3

    def __post_init__(self) -> None:
        check_choice("spread", self.spread, SCALES)
        for field in ("scale", "smallest_scale"):
            if not 0 < getattr(self, field) < np.inf:
                raise ValueError(f"{field} is {getattr(self, field)}; it must be above 0")
        if self.scale <= self.smallest_scale:
            raise ValueError(f"scale is {self.scale}; it must be above smallest_scale, which is {self.smallest_scale}")

    @property
    def num_outputs(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 2 if self.spread == "output" else 1

    def free_shape(self, image_shape: tuple[int, int, int]) -> tuple[int, ...] | None:
        return {"shared": (1,), "pixel": image_shape}.get(self.spread)

    def parameters(self, outputs: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(location, logarithm of the scale), each [B, H, W, C]."""
        if self.spread == "fixed":
            return outputs, jnp.full_like(outputs, np.log(self.scale))
        location, change = jnp.split(outputs, 2, axis=-1)
        low = np.log(self.smallest_scale)
        start = np.log(np.expm1(np.log(self.scale) - low))  # where softplus gives what is between the two
        return location, low + jax.nn.softplus(start + change)


@dataclasses.dataclass(frozen=True)
class Gaussian(Scaled):
    """A normal distribution of each value. Its density is over [-1, 1], and of values that are never rounded: of 8-bit
    images it can be as high as the scale is small, so it gives no bits that compare with those of other models.
    """

    unit: ClassVar = "nats of a density over values from -1 to 1"

    def log_probability(self, image: jax.Array, outputs: jax.Array) -> jax.Array:
        location, log_scale = self.parameters(outputs)
        errors = jnp.square((image - location) * jnp.exp(-log_scale))
        return _of_images(-0.5 * (errors + np.log(2 * np.pi)) - log_scale)

    def mean(self, outputs: jax.Array) -> jax.Array:
        return jnp.clip(self.parameters(outputs)[0], -1, 1)

    def sample(self, keys: jax.Array, outputs: jax.Array) -> jax.Array:
        location, log_scale = self.parameters(outputs)
        return jnp.clip(location + jnp.exp(log_scale) * _drawn(jax.random.normal, keys, location), -1, 1)


@described(levels="grey levels that values are rounded to, evenly spaced from black to white; 256 of 8 bits")
@dataclasses.dataclass(frozen=True)
class DiscretisedLogistic(Scaled):
    """The probability of each grey level is that of its bin under a logistic distribution (Kingma et al. 2016,
    appendix C.4; Salimans et al. 2017, eq. 2). The outermost bins reach to infinity, so that it sums to 1.
    """

    levels: int = 256  # pyright: ignore[reportIncompatibleVariableOverride]
    unit: ClassVar = "nats of grey levels"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(2, levels=self.levels)

    def observed(self, keys: jax.Array, image: jax.Array) -> jax.Array:
        return self._rounded(image)

    def log_probability(self, image: jax.Array, outputs: jax.Array) -> jax.Array:
        return _of_images(self.log_probability_of_values(image, outputs))

    def log_probability_of_values(self, image: jax.Array, outputs: jax.Array) -> jax.Array:
        """log p of each value [B, H, W, C].

        sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)), whose factors are exact in the tails too.
        """
        location, log_scale = self.parameters(outputs)
        half = 1 / (self.levels - 1)
        upper, lower = ((image - location + edge) * jnp.exp(-log_scale) for edge in (half, -half))
        width = 2 * half * jnp.exp(-log_scale)
        below, above = jax.nn.log_sigmoid(upper), jax.nn.log_sigmoid(-lower)
        between = below + above + jnp.log(-jnp.expm1(-width))
        return jnp.where(image < -1 + half, below, jnp.where(image > 1 - half, above, between))

    def mean(self, outputs: jax.Array) -> jax.Array:
        """That of the logistic distribution with its tails at -1 and 1, within a level of the rounded one's."""
        location, log_scale = self.parameters(outputs)
        scale = jnp.exp(log_scale)
        return -1 + scale * (jax.nn.softplus((location + 1) / scale) - jax.nn.softplus((location - 1) / scale))

    def sample(self, keys: jax.Array, outputs: jax.Array) -> jax.Array:
        location, log_scale = self.parameters(outputs)
        drawn = location + jnp.exp(log_scale) * _drawn(jax.random.logistic, keys, location)
        return self._rounded(jnp.clip(drawn, -1, 1))

    def _rounded(self, image: jax.Array) -> jax.Array:
        steps = self.levels - 1
        return jnp.round((image + 1) * (steps / 2)) * (2 / steps) - 1


LIKELIHOODS: dict[str, Callable[..., Any]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "discretised_logistic": DiscretisedLogistic,
}


def _of_images(values: jax.Array) -> jax.Array:
    return values.sum(axis=tuple(range(1, values.ndim)))


def _uniform(keys: jax.Array, like: jax.Array) -> jax.Array:
    return _drawn(jax.random.uniform, keys, like)


def _drawn(draw: Callable[..., jax.Array], keys: jax.Array, like: jax.Array) -> jax.Array:
    """Draws shaped [B, ...] as `like`, row i with keys[i]."""
    return jax.vmap(lambda key: draw(key, like.shape[1:], like.dtype))(keys)
