"""Transformer blocks as one loop over stacked parameters, so that a program does not grow with the depth.

Written out, every block is a part of the program, and a compiler works on each. Equal blocks in a row can be one
``lax.scan`` instead: their parameters are stored stacked, ``blocks_0_to_11`` with a first axis of 12 in place of
``blocks_0`` to ``blocks_11``. :func:`stack` and :func:`unstack` go from one tree to the other; files of other libraries
hold the second.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from diffusion_jax.models.remat import rematerialized

# Modules that may be stacked, and the name of a stack. training/sharding.py knows the second, too.
LAYER = re.compile(r"^((?:single_)?(?:transformer_)?blocks)_(\d+)$")
STACK = re.compile(r"^(.+)_(\d+)_to_(\d+)$")


def apply_layers(
    block: type[nn.Module],
    arguments: Sequence[tuple[Any, ...]],
    prefix: str,
    step: Callable[[Any, Any, Any], Any],
    carry: Any,
    each: Any = None,
    *,
    scan: bool,
    remat: str | bool,
    static_argnums: tuple[int, ...] = (),
) -> Any:
    """Sends ``carry`` through blocks, submodules of the caller named prefix_0, prefix_1, ...

    Args:
      block: class of all of them.
      arguments: of its constructor, one tuple a layer. With ``scan``, neighbours with equal ones become a stack.
      prefix: of their names.
      step: (block, carry, this layer's part of ``each``) -> carry, of the same shapes and dtypes.
      carry: arrays.
      each: arrays with a first axis of layers, or None.
      scan: loop over equal blocks. Each draws its own parameters and dropout.
      remat, static_argnums: see :func:`diffusion_jax.models.remat.rematerialized`.
    """
    written_out, looped = (rematerialized(block, remat, static_argnums, scanned=inside) for inside in (False, True))
    for kind, layers in itertools.groupby(range(len(arguments)), lambda layer: arguments[layer]):
        first, *more = layers
        if scan and more:
            part = jax.tree.map(lambda x, run=slice(first, more[-1] + 1): x[run], each)
            carry = _loop(looped(*kind, name=stack_name(prefix, first, more[-1])), step, carry, part, 1 + len(more))
            continue
        for layer in (first, *more):
            part = jax.tree.map(lambda x, layer=layer: x[layer], each)
            carry = step(written_out(*kind, name=f"{prefix}_{layer}"), carry, part)
    return carry


def _loop(block: nn.Module, step: Callable[[Any, Any, Any], Any], carry: Any, each: Any, length: int) -> Any:
    def body(block: nn.Module, carry: Any, part: Any) -> tuple[Any, None]:
        return step(block, carry, part), None

    # Every layer splits off its own keys, and an initialiser sees the shape of one layer, not of the stack.
    split: dict[Any, bool] = {"params": True, "dropout": True}
    return nn.scan(body, variable_axes={"params": 0}, split_rngs=split, length=length)(block, carry, each)[0]


def stack_name(prefix: str, first: int, last: int) -> str:
    return f"{prefix}_{first}_to_{last}"


def scanned(model: nn.Module, params: Any) -> tuple[nn.Module, Any]:
    """The same network with scan_layers=True, and its parameters for it.

    Raises:
      ValueError: the network has no such field.
    """
    if not hasattr(model, "scan_layers"):
        raise ValueError(f"{type(model).__name__} has no scan_layers: its blocks differ from each other")
    return model.clone(scan_layers=True), stack(unstack(params))


def unrolled(model: nn.Module, params: Any) -> tuple[nn.Module, Any]:
    """The same network without scan_layers, and its parameters for it; any other network stays as it is."""
    if not getattr(model, "scan_layers", False):
        return model, params
    return model.clone(scan_layers=False), unstack(params)


def stack(params: Any) -> Any:
    """The parameters with blocks that are equal in structure and shapes, and neighbours, stacked.

    Arrays of NumPy stay so. Blocks that the network does not loop over together differ in structure too.
    """
    if not isinstance(params, Mapping):
        return params
    found = {name: match for name in params if (match := LAYER.fullmatch(name))}
    tree = {name: stack(value) for name, value in params.items() if name not in found}
    order = sorted(found, key=lambda name: (found[name][1], int(found[name][2])))
    for (prefix, _), names in itertools.groupby(order, lambda name: (found[name][1], _kind(params[name]))):
        first, *more = names
        if more:
            last = int(found[more[-1]][2])
            stacked = jax.tree.map(_join, params[first], *(params[name] for name in more))
            tree[stack_name(prefix, int(found[first][2]), last)] = stacked
        else:
            tree[first] = params[first]
    return tree


def unstack(params: Any) -> Any:
    """The parameters with a module of its own for each layer, the inverse of :func:`stack`."""
    if not isinstance(params, Mapping):
        return params
    tree: dict[str, Any] = {}
    for name, value in params.items():
        if match := STACK.fullmatch(name):
            first, last = int(match[2]), int(match[3])
            for layer in range(first, last + 1):
                tree[f"{match[1]}_{layer}"] = jax.tree.map(lambda x, at=layer - first: x[at], value)
        else:
            tree[name] = unstack(value)
    return tree


def _join(*leaves: Any) -> Any:
    return np.stack(leaves) if all(isinstance(leaf, np.ndarray) for leaf in leaves) else jnp.stack(leaves)


def _kind(block: Any) -> tuple[Any, ...]:
    leaves, structure = jax.tree.flatten(block)
    return structure, tuple(leaf.shape for leaf in leaves)
