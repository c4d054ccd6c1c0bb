"""The classifier of noisy images: what it refuses, how it starts, what it computes in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import UNetClassifier
from diffusion_jax.models.registry import CLASSIFIERS, MODELS
from diffusion_jax.models.unet_classifier import POOLS

TINY = UNetClassifier(
    num_classes=5, channels=8, channel_mults=(1, 2), num_res_blocks=1, attention_resolutions=(4,), head_channels=8,
    norm_groups=4,
)  # fmt: skip
IMAGES = jnp.zeros((2, 8, 8, 3))


def test_it_is_a_classifier_and_no_denoiser():
    assert {"unet_classifier": UNetClassifier} == CLASSIFIERS and not CLASSIFIERS.keys() & MODELS.keys()


@pytest.mark.parametrize("pool", POOLS)
def test_logits_are_float32_whatever_it_computes_in(pool):
    model = TINY.clone(pool=pool, dtype="bfloat16")
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES, jnp.zeros(2, jnp.int32)))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = jax.eval_shape(model.apply, variables, IMAGES, jnp.zeros(()))
    assert (out.shape, out.dtype) == ((2, 5), jnp.float32)


def test_the_mean_of_the_pixels_starts_without_an_opinion():
    """The released code sets the last layer of this pool, and of no other, to zero."""
    parameters = {}
    for pool in ("adaptive", "attention"):
        parameters[pool] = jax.jit(TINY.clone(pool=pool).init)(jax.random.key(0), IMAGES, jnp.zeros(2))["params"]
    assert not np.any(parameters["adaptive"]["out"]["kernel"])
    assert np.all(parameters["attention"]["pool"]["to_out_0"]["kernel"] != 0)
    places = parameters["attention"]["pool"]["positional_embedding"]
    assert places.shape == (1 + 4 * 4, 16)
    np.testing.assert_allclose(places.std(), 16**-0.5, rtol=0.2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "max"}, "pool='max': it could be 'attention' or 'adaptive'"),
        ({"num_classes": 0}, "num_classes=0"),
        (
            {"image_size": 16, "attention_resolutions": (8,)},
            "pool='attention' has an embedding for each place of images of 16 pixels",
        ),
        ({"pool": "spatial_v2", "channels": 24, "norm_groups": 3}, "norm_groups=3: pool='spatial_v2' needs a divisor"),
        ({"head_channels": 5}, "head_channels=5 does not divide"),
    ],
)
def test_what_cannot_be_is_one_line(fields, message):
    with pytest.raises(ValueError, match=message) as caught:
        TINY.clone(**fields).validate(8, 3)
    assert "\n" not in str(caught.value)
