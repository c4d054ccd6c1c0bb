"""Every network that a config can name keeps the promises that methods and configs build on."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.models import MODELS

SIZE, CHANNELS, CLASSES = 64, 1, 3


@pytest.mark.parametrize("name", MODELS)
def test_networks_are_built_and_called_alike(name):
    model = MODELS[name](out_channels=2, num_classes=CLASSES, dtype="bfloat16")
    model.validate(SIZE, CHANNELS)
    sample, labels = jnp.zeros((2, SIZE, SIZE, CHANNELS)), jnp.full(2, CLASSES)  # the null class
    # as methods.Diffusion does: by position, with integer or real times
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), sample, jnp.zeros(2, jnp.int32), labels))
    assert set(variables) == {"params"}
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    out = jax.eval_shape(
        lambda variables: model.apply(
            variables, sample, jnp.zeros(2), labels, True, rngs={"dropout": jax.random.key(0)}
        ),
        variables,
    )
    assert (out.shape, out.dtype) == ((2, SIZE, SIZE, 2), jnp.float32)


@pytest.mark.parametrize("name", MODELS)
def test_fields_have_defaults_and_plain_types(name):
    # configs make a field of each; a network of the wrong size says so in a ValueError
    for field, parameter in inspect.signature(MODELS[name]).parameters.items():
        if field not in ("name", "parent"):
            assert parameter.default is not inspect.Parameter.empty, field
            assert parameter.default is None or isinstance(parameter.default, (bool, int, float, str, tuple)), field
    with pytest.raises(ValueError, match=r"^[^\n]*$"):
        MODELS[name](out_channels=0).validate(SIZE, CHANNELS)
    with pytest.raises(ValueError, match="none were given"):
        jax.eval_shape(
            lambda: MODELS[name](num_classes=CLASSES).init(jax.random.key(0), jnp.zeros((2, SIZE, SIZE, 1)), 0)
        )
