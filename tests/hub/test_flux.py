"""Flux's transformer: outputs of diffusers, and the way back to the files.

The goldens were made by diffusers 0.42.1 and the fill rule: two blocks of each kind with guidance ("flux-tiny"), one of
each without ("flux-tiny-schnell"), on 4x6 tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.models.flux import FluxTransformer
from tests import golden
from tests.hub.folders import assert_close, assert_round_trip, write

NAMES = ("flux-tiny", "flux-tiny-schnell")


def arguments(name: str) -> dict:
    return {key: value for key, value in golden.load(name).items() if key != "out"}


# sines of 3500 (guidance 3.5) differ by 4e-4 with the rounding of their frequencies
@pytest.mark.parametrize(("name", "tolerance"), [("flux-tiny", 1e-4), ("flux-tiny-schnell", 1e-5)])
def test_output_is_diffusers(name, tolerance, tmp_path):
    model, params = hub.load(write(name, tmp_path))
    out = jax.jit(lambda p, given: model.apply({"params": p}, **given))(params, arguments(name))
    assert_close(out, golden.load(name)["out"], tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_bit_identical(name, tmp_path):
    assert_round_trip(name, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": 2}, "patch_size=2 is not covered; it could be 1"),
        ({"axes_dims_rope": [4, 4, 4]}, "rotary_widths=.* add up to head_width=16"),
        ({"guidance_embeds": False}, "left over: .*guidance_embedder"),
    ],
)
def test_settings_that_are_not_covered_are_refused(settings, message, tmp_path):
    with pytest.raises(hub.CheckpointError, match=message):
        hub.load(write("flux-tiny", tmp_path, **settings))


def test_guidance_is_given_where_it_is_read(tmp_path):
    model, params = hub.load(write("flux-tiny", tmp_path))
    with pytest.raises(ValueError, match="guidance=True, but none was given"):
        model.apply({"params": params}, **(arguments("flux-tiny") | {"guidance": None}))


@pytest.mark.parametrize(("guidance", "expected"), [(True, 11_901_408_320), (False, 11_891_178_560)])
def test_published_sizes(guidance, expected):
    model = FluxTransformer(guidance=guidance)
    scale = jnp.ones(1) if guidance else None
    tokens = [jnp.zeros(shape) for shape in ((1, 1, 64), (1,), (1, 1, 4096), (1, 768), (1, 3), (1, 3))]
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *tokens, scale))
    assert sum(np.prod(leaf.shape, dtype=np.int64) for leaf in jax.tree.leaves(shapes)) == expected
