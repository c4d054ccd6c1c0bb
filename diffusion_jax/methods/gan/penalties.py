"""What keeps the game in balance: penalties of gradients, and of how evenly a generator's styles move its images.

A discriminator is a function from images [B, H, W, C] to logits [B]. Gradients are those of the sum of the logits,
which is each image's own where no image's logit hangs on another.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Discriminator = Callable[[jax.Array], jax.Array]


def logits_and_slopes(discriminator: Discriminator, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(logits [B], squared norms [B] of their gradients by the images).

    On real images the norms are R1, on generated ones R2 (Mescheder et al. 2018, equations 9 and 10, without their
    factor gamma / 2).
    """
    logits, pull = jax.vjp(discriminator, images)
    (gradients,) = pull(jnp.ones_like(logits))
    return logits, _squares(gradients)


def gradient_penalty(
    discriminator: Discriminator, real: jax.Array, fake: jax.Array, shares: jax.Array, slope: float = 1.0
) -> jax.Array:
    """(|gradient| - slope)^2 [B] at the point that is `shares` [B] of the way from a generated image to a real one.

    WGAN-GP (Gulrajani et al. 2017, equation 3, without its factor lambda).
    """
    shares = shares.reshape(-1, 1, 1, 1)
    _, squares = logits_and_slopes(discriminator, fake + shares * (real - fake))
    return jnp.square(_root(squares) - slope)


def path_lengths(generate: Callable[[jax.Array], jax.Array], styles: jax.Array, directions: jax.Array) -> jax.Array:
    """|J^T y| [B]: how far the images move by their styles [B, D], J being the images' Jacobian by the style.

    directions: y, random images [B, H, W, C] of independent N(0, 1) / sqrt(H W), over which the mean of the length is
    the one of StyleGAN2's path length regularisation (Karras et al. 2020, section 3.2 and appendix B).
    """
    _, pull = jax.vjp(generate, styles)
    (gradients,) = pull(directions)
    return _root(_squares(gradients))


def path_length_penalty(lengths: jax.Array, mean: jax.Array) -> jax.Array:
    """(lengths - mean)^2 [B], the mean being the one of earlier updates (equation 4, without its factor)."""
    return jnp.square(lengths - mean)


def _squares(gradients: jax.Array) -> jax.Array:
    wide = gradients.astype(jnp.promote_types(gradients.dtype, jnp.float32))
    return jnp.square(wide).reshape(len(wide), -1).sum(-1)


def _root(squares: jax.Array) -> jax.Array:
    """The square root, with gradient 0 where it has none: a function may be flat at an image."""
    is_flat = squares == 0
    return jnp.where(is_flat, 0, jnp.sqrt(jnp.where(is_flat, 1, squares)))
