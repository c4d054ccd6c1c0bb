"""What the tests of several networks share: inputs, parameters of ordinary size, counting and applying."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# parameters that belong to a network without being trained
CONSTANTS = {"frequencies", "phases"}


def inputs(model: nn.Module, size: int, batch: int = 3, channels: int = 3) -> tuple:
    """(images, times, labels) of a batch."""
    sample = jax.random.normal(jax.random.key(1), (batch, size, size, channels))
    labels = None if getattr(model, "num_classes", None) is None else jnp.arange(batch)
    return sample, jnp.linspace(0.1, 0.9, batch), labels


def shapes(model: nn.Module, size: int, channels: int = 3):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs(model, size, 1, channels)))["params"]


def count(model: nn.Module, size: int, channels: int = 3) -> int:
    """Trained parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes(model, size, channels))
    return sum(math.prod(leaf.shape) for path, leaf in leaves if path[-1].key not in CONSTANTS)


def randomized(model: nn.Module, size: int, channels: int = 3):
    """Parameters of ordinary size everywhere: a fresh network's output is zero and would hide mistakes."""
    leaves, tree = jax.tree.flatten(shapes(model, size, channels))
    rng = np.random.default_rng(0)
    values = [
        rng.standard_normal(leaf.shape).astype(np.float32) / math.sqrt(max(1, math.prod(leaf.shape[:-1])))
        for leaf in leaves
    ]
    return jax.tree.unflatten(tree, values)


@functools.partial(jax.jit, static_argnames=("model", "train"))
def apply(model: nn.Module, params, sample, timestep, class_labels=None, *, train=False, key=None, **more):
    rngs = {"dropout": key} if train else None
    return model.apply({"params": params}, sample, timestep, class_labels, train=train, rngs=rngs, **more)
