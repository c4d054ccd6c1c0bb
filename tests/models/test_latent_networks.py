"""Generators and discriminators by name: their contract, and that latent and class reach the image."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.methods.gan.settings import DISCRIMINATORS, GENERATORS
from diffusion_jax.models.dcgan import DCGANGenerator
from diffusion_jax.models.latent_networks import Projection

SMALL = {"channels": 4, "width": 16, "depth": 2, "max_channels": 8, "mapping_depth": 1, "style_dim": 6}
SIZE, CHANNELS, CLASSES = 8, 2, 3
LABELS = jnp.array([0, 1, 2, 0])


def build(network, **more):
    fields = inspect.signature(network).parameters
    return network(**{name: value for name, value in {**SMALL, **more}.items() if name in fields})


@pytest.mark.parametrize("name", GENERATORS)
def test_generators_are_called_alike(name):
    network = build(GENERATORS[name], image_size=SIZE, out_channels=CHANNELS, latent_dim=5, num_classes=CLASSES)
    network.validate(SIZE, CHANNELS)
    latents = jax.random.normal(jax.random.key(0), (4, network.latent_dim))
    variables = jax.jit(network.init)(jax.random.key(1), latents, LABELS)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    draw = jax.jit(network.apply)
    images = draw(variables, latents, LABELS)
    assert images.shape == (4, SIZE, SIZE, CHANNELS) and images.dtype == jnp.float32
    for changed in (draw(variables, latents.at[0].add(1.0), LABELS), draw(variables, latents, LABELS.at[0].set(1))):
        assert np.abs(changed[0] - images[0]).max() > 1e-5
        np.testing.assert_allclose(changed[1:], images[1:], atol=1e-6)

    @jax.jit
    def in_two_parts(variables):
        styles = network.apply(variables, latents, LABELS, method="style")
        return network.apply(variables, styles, method="synthesize")

    np.testing.assert_allclose(in_two_parts(variables), images, atol=1e-5)
    half = build(GENERATORS[name], image_size=SIZE, out_channels=CHANNELS, latent_dim=5, dtype="bfloat16")
    assert jax.eval_shape(lambda: half.init_with_output(jax.random.key(1), latents))[0].dtype == jnp.float32
    with pytest.raises(ValueError, match="num_classes=3, but none were given"):
        network.apply(variables, latents)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_discriminators_are_called_alike(name):
    network = build(DISCRIMINATORS[name], num_classes=CLASSES, group=1)
    network.validate(SIZE, CHANNELS)
    images = jax.random.normal(jax.random.key(0), (4, SIZE, SIZE, CHANNELS))
    variables = jax.jit(network.init)(jax.random.key(1), images, LABELS)
    judge = jax.jit(network.apply)
    logits = judge(variables, images, LABELS)
    assert logits.shape == (4,) and logits.dtype == jnp.float32
    for changed in (judge(variables, images.at[0].add(1.0), LABELS), judge(variables, images, LABELS.at[0].set(1))):
        assert abs(changed[0] - logits[0]) > 1e-6
        np.testing.assert_allclose(changed[1:], logits[1:], atol=1e-6)
    half = build(DISCRIMINATORS[name], dtype="bfloat16")
    assert jax.eval_shape(lambda: half.init_with_output(jax.random.key(1), images))[0].dtype == jnp.float32


def test_a_projection_is_a_line_and_a_product_with_the_class():
    projection, features = Projection(CLASSES), jax.random.normal(jax.random.key(0), (4, 5))
    params = projection.init(jax.random.key(1), features, LABELS)["params"]
    table, line = params["class_embedding"]["embedding"], params["linear"]
    expected = np.asarray(features @ line["kernel"])[:, 0] + np.einsum("nd,nd->n", features, table[LABELS]) / np.sqrt(5)
    np.testing.assert_allclose(projection.apply({"params": params}, features, LABELS), expected, atol=1e-5)


@pytest.mark.parametrize("networks", [GENERATORS, DISCRIMINATORS])
def test_fields_have_defaults_and_plain_types(networks):
    for name, network in networks.items():
        for field, parameter in inspect.signature(network).parameters.items():
            if field not in ("name", "parent"):
                assert parameter.default is None or isinstance(parameter.default, (bool, int, float, str)), field
        with pytest.raises(ValueError, match=r"(width|channels)=0"):
            network(**{"width" if name == "mlp" else "channels": 0}).validate(SIZE, CHANNELS)


def test_what_cannot_be_is_one_line():
    with pytest.raises(ValueError, match="norm='batch': it could be 'group' or 'none'"):
        DCGANGenerator(norm="batch").validate(64, 3)
    with pytest.raises(ValueError, match="images of 48 pixels: the side must be a power of two"):
        DCGANGenerator().validate(48, 3)
    with pytest.raises(ValueError, match="images of 64x64x3: an MLP takes at most 4096"):
        GENERATORS["mlp"]().validate(64, 3)
