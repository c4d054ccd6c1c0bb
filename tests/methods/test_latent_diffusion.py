"""Latents as what diffusion works on: drawn anew, normalised, and never clipped."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.conditions.label import Label
from diffusion_jax.diffusion import process, samplers
from diffusion_jax.diffusion.objective import Objective
from diffusion_jax.diffusion.weighting import simple
from diffusion_jax.methods.latent_diffusion.model import DiffusionOfLatents
from diffusion_jax.methods.latent_space import LatentSpace
from tests.methods.test_diffusion import Echo

CHAIN = process.cosine(50)
METHOD = DiffusionOfLatents(
    Echo(),
    Objective(CHAIN, "sample", simple()),
    samplers.ddpm(CHAIN, "sample", 2, clip=None),
    (2, 2, 1),
    told={"label": Label(3)},
    space=LatentSpace(mean=(1.0,), std=(2.0,), final_std=0.5),
)


def batch_of(stored):
    size = len(stored)
    return {
        "image": stored,
        "condition": {"label": jnp.zeros(size, jnp.int32)},
        "position": jnp.arange(size, dtype=jnp.int32),
    }


def test_latents_are_normalised_and_drawn_from_their_gaussians_at_every_step():
    plain = METHOD.prepare((), batch_of(jnp.full((3, 2, 2, 1), 5.0)), jax.random.key(0))
    np.testing.assert_allclose(plain["image"], (5 - 1) / 2 * 0.5)
    moments = jnp.broadcast_to(jnp.array([5.0, 0.4]), (500, 2, 2, 2))
    drawn = METHOD.prepare((), batch_of(moments), jax.random.key(0))["image"]
    assert drawn.shape == (500, 2, 2, 1)
    np.testing.assert_allclose([drawn.mean(), drawn.std()], [1, 0.1], rtol=0.05)
    again = METHOD.prepare((), batch_of(moments), jax.random.key(1))["image"]
    assert np.abs(drawn - again).max() > 0.05
    # An example's draw follows from its position, not from its neighbours.
    part = jax.tree.map(lambda value: value[7:9], batch_of(moments))
    np.testing.assert_array_equal(METHOD.prepare((), part, jax.random.key(0))["image"], drawn[7:9])


def test_parameters_fit_latents_whose_moments_are_stored():
    params = METHOD.init(jax.random.key(0), batch_of(jnp.zeros((1, 2, 2, 2))))
    loss, _ = METHOD.loss(params, batch_of(jnp.zeros((4, 2, 2, 2))), jax.random.key(0), jnp.int32(0))
    assert np.isfinite(loss)


def test_samples_are_not_clipped():
    params = {"table": jnp.array([0.0, 3.0, -4.0, 0.1])}
    drawn, _ = METHOD.sample(params, jax.random.split(jax.random.key(0), 2), {"label": jnp.array([1, 2])})
    np.testing.assert_allclose(drawn[:, 0, 0, 0], [3, -4], atol=1e-4)
