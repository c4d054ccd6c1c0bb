"""Sums of a residual stream are stored once on a CPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.test_util import check_grads

from diffusion_jax.models import target
from diffusion_jax.models.once import computed_once


def stack(kernels, x, keep):
    for kernel in kernels:
        x = keep(x + jnp.tanh(x @ kernel) * jnp.exp(x))
    return jnp.sum(x**2)


def largest_kernel(keep) -> int:
    """Instructions of the largest fused kernel in the gradient of a stack of eight."""
    kernels = [jax.ShapeDtypeStruct((16, 16), jnp.float32)] * 8
    x = jax.ShapeDtypeStruct((4, 16), jnp.float32)
    text = jax.jit(jax.grad(lambda k, x: stack(k, x, keep))).lower(kernels, x).compile().as_text()
    bodies = re.findall(r"^%\S*fused_computation\S* .*?^\}", text, re.DOTALL | re.MULTILINE)
    return max(body.count("\n") for body in bodies)


def test_kernels_do_not_grow_with_the_depth():
    stored, repeated = largest_kernel(computed_once), largest_kernel(lambda x: x)
    assert 3 * stored < repeated


def test_values_and_gradients_are_those_of_x():
    random = np.random.default_rng(0)
    kernels = [jnp.asarray(random.standard_normal((16, 16)), jnp.float32) / 4 for _ in range(3)]
    x = jnp.asarray(random.standard_normal((4, 16)), jnp.float32)
    ours = jax.value_and_grad(stack)(kernels, x, computed_once)
    plain = jax.value_and_grad(stack)(kernels, x, lambda x: x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, plain)
    check_grads(lambda x: computed_once(jnp.sin(x)), (x,), order=2, modes=("fwd", "rev"))


def test_other_compilers_are_left_alone():
    def program(x):
        return computed_once(x + 1)

    assert "optimization_barrier" in str(jax.make_jaxpr(program)(1.0))
    with target.tracing_for("tpu"):
        assert "optimization_barrier" not in str(jax.make_jaxpr(lambda x: program(x))(1.0))
