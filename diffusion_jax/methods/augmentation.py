"""Augmentation that does not leak into samples: the network is told what was done to an image (Karras et al. 2022,
appendix F.2). When sampling it is told that nothing was.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.methods.warp import warp
from diffusion_jax.options import described

# Length of the vector that says what was done.
NUM_LABELS = 9

_SCALE_STD = 0.2  # of log2 of the factor, also for anisotropic scaling
_TRANSLATION_STD = 0.125  # of the image's size
_AXIS_PROBABILITY = 0.5  # that anisotropic scaling is along an axis of its own instead of x


class Transform(NamedTuple):
    """One image's transform; zeros are no change.

    Attributes:
      flip_x, flip_y: 1 mirrors the image left to right, top to bottom.
      scale: the image grows by 2^(0.2 scale).
      rotation: in radians.
      anisotropy, axis: it grows by 2^(0.2 anisotropy) along a direction at the angle `axis`, and shrinks across it.
      translation: [2], right and down, in eighths of the image's size.
    """

    flip_x: jax.Array
    flip_y: jax.Array
    scale: jax.Array
    rotation: jax.Array
    anisotropy: jax.Array
    axis: jax.Array
    translation: jax.Array

    def labels(self) -> jax.Array:
        """What the network is told, float32 [9]."""
        return jnp.stack(
            [
                self.flip_x,
                self.flip_y,
                self.scale,
                jnp.cos(self.rotation) - 1,
                jnp.sin(self.rotation),
                self.anisotropy * jnp.cos(self.axis),
                self.anisotropy * jnp.sin(self.axis),
                self.translation[0],
                self.translation[1],
            ]
        ).astype(jnp.float32)

    def apply(self, image: jax.Array) -> jax.Array:
        """The transformed image [H, W, C]. Flips are exact, and so is no change."""
        image = jnp.where(self.flip_x > 0, image[:, ::-1], image)
        image = jnp.where(self.flip_y > 0, image[::-1], image)
        stretch = jnp.exp2(_SCALE_STD * jnp.stack([self.anisotropy, -self.anisotropy]))
        grow = jnp.diag(jnp.exp2(-_SCALE_STD * self.scale) / stretch)
        inverse = jnp.linalg.multi_dot(
            [_rotation(self.rotation), _rotation(-self.axis), grow, _rotation(self.axis)], precision="highest"
        )
        size = jnp.array([image.shape[1], image.shape[0]])
        warped = warp(image, inverse, self.translation * _TRANSLATION_STD * size).astype(image.dtype)
        unmoved = (self.scale == 0) & (self.rotation == 0) & (self.anisotropy == 0) & jnp.all(self.translation == 0)
        return jnp.where(unmoved, image, warped)


@described(
    probability="of each transform, of which the network is told; 0.12 for CIFAR-10, 0: no augmentation",
    flip_x="factor of the probability of a mirror image; 1e8: every other image",
    flip_y="factor of the probability of an image upside down",
    scale="factor of the probability of another size",
    rotation="factor of the probability of a rotation",
    anisotropy="factor of the probability of stretching along an axis",
    translation="factor of the probability of a shift",
)
@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random transforms, each with `probability` times its own factor, at most 1.

    The defaults are EDM's: 0.12 (CIFAR-10) or 0.15 (FFHQ, AFHQ) is its probability, and every other image is mirrored.
    """

    probability: float = 0.0
    flip_x: float = 1e8
    flip_y: float = 1.0
    scale: float = 1.0
    rotation: float = 1.0
    anisotropy: float = 1.0
    translation: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"augmentation.probability is {self.probability}; it must be from 0 to 1")
        for field in dataclasses.fields(Augmentation):
            if not getattr(self, field.name) >= 0:
                raise ValueError(f"augmentation.{field.name} is {getattr(self, field.name)}; it must be at least 0")

    def draw(self, key: jax.Array, probability: jax.Array | None = None) -> Transform:
        """A random transform; probability: another than the one of the settings."""
        keys = iter(jax.random.split(key, 14))
        strength = self.probability if probability is None else probability

        def with_probability(factor: float, value: jax.Array) -> jax.Array:
            return jnp.where(jax.random.uniform(next(keys)) < factor * strength, value, 0.0)

        def angle() -> jax.Array:
            return jax.random.uniform(next(keys), minval=-jnp.pi, maxval=jnp.pi)

        along_axis = jax.random.bernoulli(next(keys), _AXIS_PROBABILITY)
        return Transform(
            flip_x=with_probability(self.flip_x, jax.random.bernoulli(next(keys)).astype(jnp.float32)),
            flip_y=with_probability(self.flip_y, jax.random.bernoulli(next(keys)).astype(jnp.float32)),
            scale=with_probability(self.scale, jax.random.normal(next(keys))),
            rotation=with_probability(self.rotation, angle()),
            anisotropy=with_probability(self.anisotropy, jax.random.normal(next(keys))),
            axis=jnp.where(along_axis, angle(), 0.0),
            translation=with_probability(self.translation, jax.random.normal(next(keys), (2,))),
        )

    def __call__(self, key: jax.Array, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        """An image [H, W, C], transformed at random, and the labels [9] that say how."""
        transform = self.draw(key)
        return transform.apply(image), transform.labels()


def _rotation(angle: jax.Array) -> jax.Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
