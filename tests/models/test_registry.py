"""Every network that a config can name keeps the promises that methods and configs build on."""

import inspect
import typing

import jax
import jax.numpy as jnp
import pytest

from diffusion_jax.models import MODELS
from diffusion_jax.models.network import DenoisingNetwork, NoisyImageClassifier
from diffusion_jax.models.registry import CLASSIFIERS, NETWORKS
from diffusion_jax.options import options

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


PROTOCOLS = {name: DenoisingNetwork for name in MODELS} | {name: NoisyImageClassifier for name in CLASSIFIERS}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_has_the_members_of_its_protocol(name):
    """Methods call by position: the protocol's parameters come first, and further ones have defaults."""
    promised = PROTOCOLS[name]
    for member in ("__call__", "validate", "init", "apply"):
        assert callable(getattr(NETWORKS[name], member)), member
    for member in ("__call__", "validate"):
        expected = inspect.signature(getattr(promised, member)).parameters.values()
        found = list(inspect.signature(getattr(NETWORKS[name], member)).parameters.values())
        # what a protocol takes by its place alone has any name
        wanted = [(one.kind != one.POSITIONAL_ONLY and one.name, one.default) for one in expected]
        shown = [(called and one.name, one.default) for (called, _), one in zip(wanted, found, strict=False)]
        assert shown == wanted
        assert all(one.default is not inspect.Parameter.empty for one in found[len(wanted) :])
    hints = typing.get_type_hints(NETWORKS[name].__call__)
    assert hints["return"] is jax.Array


@pytest.mark.parametrize("name", NETWORKS)
def test_every_option_of_a_network_is_described(name):
    filled = ("out_channels", "num_classes", "null_class", "dtype")
    assert all(option.text for option in options(NETWORKS[name], filled).values())


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_are_built_and_called_alike(name):
    model = CLASSIFIERS[name](num_classes=CLASSES, dtype="bfloat16")
    model.validate(SIZE, CHANNELS)
    sample = jnp.zeros((2, SIZE, SIZE, CHANNELS))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), sample, jnp.zeros(2, jnp.int32)))
    assert set(variables) == {"params"}
    out = jax.eval_shape(
        lambda variables: model.apply(variables, sample, jnp.zeros(2), True, rngs={"dropout": jax.random.key(0)}),
        variables,
    )
    assert (out.shape, out.dtype) == ((2, CLASSES), jnp.float32)
    with pytest.raises(ValueError, match=r"^[^\n]*$"):
        CLASSIFIERS[name](num_classes=0).validate(SIZE, CHANNELS)
