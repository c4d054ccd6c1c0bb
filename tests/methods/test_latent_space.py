"""The space of latents against the formulas, and draws from their Gaussians against their moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.methods.latent_space import LatentSpace

SPACE = LatentSpace(mean=(5.81, 3.25, 0.12, -2.15), std=(4.17, 4.62, 3.71, 3.28), final_std=0.5)


def test_channels_are_normalised_one_by_one_and_back():
    latents = jax.random.normal(jax.random.key(0), (3, 2, 2, 4)) * 5
    x = SPACE.from_latents(latents)
    np.testing.assert_allclose(x[..., 1], (latents[..., 1] - 3.25) / 4.62 * 0.5, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(SPACE.to_latents(x), latents, rtol=1e-5, atol=1e-5)


def test_a_draw_has_the_moments_that_are_stored_and_follows_from_its_own_key():
    stored = jnp.broadcast_to(jnp.array([1.0, 2.0, 3.0, 4.0, 0.1, 0.2, 0.3, 0.4]), (2000, 2, 2, 8))
    keys = jax.random.split(jax.random.key(1), 2000)
    latents = SPACE.to_latents(SPACE.draw(keys, stored))
    np.testing.assert_allclose(latents.mean((0, 1, 2)), [1, 2, 3, 4], atol=0.02)
    np.testing.assert_allclose(latents.std((0, 1, 2)), [0.1, 0.2, 0.3, 0.4], rtol=0.05)
    np.testing.assert_array_equal(SPACE.draw(keys[5:7], stored[:2]), SPACE.draw(keys, stored)[5:7])


def test_what_is_stored_as_one_latent_is_that_latent():
    latents = jax.random.normal(jax.random.key(0), (3, 2, 2, 4))
    x = SPACE.draw(jax.random.split(jax.random.key(1), 3), latents)
    np.testing.assert_array_equal(x, SPACE.from_latents(latents))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mean": (0.0,), "std": (1.0, 1.0)}, "latents.mean has 1 channels, but latents.std 2"),
        ({"mean": (0.0,), "std": (0.0,)}, r"latents.std is \(0.0,\) and final_std 1.0; they must be above 0"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "latents.mean is"),
    ],
)
def test_a_space_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        LatentSpace(**fields)
