"""Augmentation of what the discriminator sees, as strong as its overfitting asks for (Karras et al. 2020).

Real and generated images are transformed alike, at random, and the generator learns through the transforms
(arXiv:2006.06676, section 2): as long as the probability stays below one, what they do does not leak into the images.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.methods.augmentation import Augmentation
from diffusion_jax.options import check_least, described

# Updates whose signs are averaged before the probability moves.
INTERVAL = 4
# Standard deviations of brightness, and of log2 of contrast and saturation (the paper's appendix B).
_BRIGHTNESS, _CONTRAST, _SATURATION = 0.2, 0.5, 1.0


class Strength(NamedTuple):
    """What is remembered of how the discriminator does.

    Attributes:
      probability: float32 scalar, of each transform.
      signs: float32 scalar, sum of the mean signs since the probability last moved.
      updates: int32 scalar, how many they are of.
    """

    probability: jax.Array
    signs: jax.Array
    updates: jax.Array


@described(
    probability="of each transform of real and generated images, at first",
    target="mean sign of verdicts on real images that the probability is moved towards, such as 0.6; None: it stays",
    speed_images="images in which the probability can move from 0 to 1",
    flip_x="factor of the probability of a mirror image",
    brightness="factor of the probability of another brightness",
    contrast="factor of the probability of another contrast",
    inversion="factor of the probability of light for dark, colours kept",
    hue="factor of the probability of turned colours, of RGB images",
    saturation="factor of the probability of paler or stronger colours",
)
@dataclasses.dataclass(frozen=True)
class AdaptiveAugmentation(Augmentation):
    """Random transforms of places and of colours, each with the probability times its own factor, at most 1.

    The transforms of places are EDM's, which are the paper's but for rotations by right angles; those of colours are
    the paper's. Those of frequencies, noise and cut-out, which it does not use in the end, are left out.
    """

    target: float | None = None
    speed_images: int = 500_000
    flip_x: float = 1.0
    flip_y: float = 0.0
    brightness: float = 1.0
    contrast: float = 1.0
    inversion: float = 1.0
    hue: float = 1.0
    saturation: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("brightness", "contrast", "inversion", "hue", "saturation"):
            check_least(0, **{f"augmentation.{name}": getattr(self, name)})
        check_least(1, **{"augmentation.speed_images": self.speed_images})
        if self.target is not None and not -1 < self.target < 1:
            raise ValueError(f"augmentation.target is {self.target}; it must be between -1 and 1, or None")

    @property
    def is_off(self) -> bool:
        """Whether nothing is ever transformed."""
        return self.probability == 0 and self.target is None

    @property
    def moves(self) -> bool:
        """Whether places are transformed, which takes most of the work; colours alone leave them."""
        places = (self.flip_x, self.flip_y, self.scale, self.rotation, self.anisotropy, self.translation)
        return any(places)

    def begin(self) -> Strength:
        """What is remembered before the first update."""
        return Strength(jnp.float32(self.probability), jnp.zeros(()), jnp.zeros((), jnp.int32))

    def adapt(self, strength: Strength, signs: jax.Array) -> Strength:
        """What is remembered after an update whose real images [B] had verdicts of these signs.

        Every fourth update the probability goes up where their mean is above the target, and else down, by as much as
        the images of these updates are of `speed_images`.
        """
        if self.target is None:
            return strength
        total, updates = strength.signs + jnp.mean(signs), strength.updates + 1
        is_due = updates == INTERVAL
        move = jnp.sign(total / INTERVAL - self.target) * (INTERVAL * len(signs) / self.speed_images)
        moved = jnp.clip(strength.probability + move, 0, 1)
        return Strength(
            jnp.where(is_due, moved, strength.probability),
            jnp.where(is_due, 0, total),
            jnp.where(is_due, 0, updates),
        )

    def augment(self, key: jax.Array, image: jax.Array, probability: jax.Array) -> jax.Array:
        """An image [H, W, C] in [-1, 1], transformed at random; it may leave that range."""
        place_key, colour_key = jax.random.split(key)
        moved = self.draw(place_key, probability).apply(image) if self.moves else image
        matrix, shift = self.colours(colour_key, image.shape[-1], probability)
        return (jnp.matmul(moved, matrix.T, precision="highest") + shift).astype(image.dtype)

    def colours(self, key: jax.Array, channels: int, probability: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(matrix [C, C], shift [C]) of a random change of colours, float32.

        Brightness is added to all channels and contrast multiplies them; the others act along the grey axis, or on
        what stands across it.
        """
        # Few draws of many numbers: every draw is a kernel of its own to compile.
        switch_key, uniform_key, normal_key = jax.random.split(key, 3)
        factors = jnp.array([self.brightness, self.contrast, self.inversion, self.hue, self.saturation])
        is_on = jax.random.uniform(switch_key, (5,)) < factors * probability
        uniform, normal = jax.random.uniform(uniform_key, (2,)), jax.random.normal(normal_key, (3,))
        brightness = jnp.where(is_on[0], _BRIGHTNESS * normal[0], 0.0)
        contrast = jnp.where(is_on[1], jnp.exp2(_CONTRAST * normal[1]), 1.0)
        inversion = jnp.where(is_on[2] & (uniform[0] < 0.5), -1.0, 1.0)
        turn = jnp.where(is_on[3], 2 * jnp.pi * uniform[1], 0.0)
        saturation = jnp.where(is_on[4], jnp.exp2(_SATURATION * normal[2]), 1.0)
        matrix = contrast * colour_matrix(channels, inversion, turn, saturation)
        return matrix, brightness * matrix.sum(1)


def colour_matrix(channels: int, grey: jax.Array, turn: jax.Array, saturation: jax.Array) -> jax.Array:
    """The matrix [C, C] that multiplies grey by `grey`, and turns by `turn` and stretches what stands across it.

    turn: in radians; only three channels have one.
    """
    grey_axis = jnp.full((channels, channels), 1 / channels)
    across = jnp.eye(channels) - grey_axis
    turned = across
    if channels == 3:
        around = jnp.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / jnp.sqrt(3.0)
        turned = jnp.cos(turn) * across + jnp.sin(turn) * around
    return grey * grey_axis + saturation * turned
