"""Low-rank changes of weights (Hu et al. 2021, arXiv:2106.09685), added while the program runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# network -> path of a kernel, joined by "/" -> (down, up): down @ up has the kernel's shape
Adapter = Mapping[str, Mapping[str, tuple[jax.Array, jax.Array]]]


def change(down: jax.Array, up: jax.Array) -> jax.Array:
    """down [..., in, r] @ up [r, out], for kernels of dense layers [in, out] and convolutions [k, k, in, out]."""
    return jnp.matmul(down.astype(jnp.float32), up.astype(jnp.float32))


def apply(params: Mapping[str, Any], adapters: Sequence[Adapter], weights: jax.Array) -> dict[str, Any]:
    """The parameters of all networks, each changed kernel W + sum_i weights[i] down_i @ up_i; the rest as it is."""
    changed = dict(params)
    for i, adapter in enumerate(adapters):
        for network, kernels in adapter.items():
            for path, (down, up) in kernels.items():
                step = weights[i] * change(down, up)
                changed[network] = _replaced(changed[network], path.split("/"), step)
    return changed


def _replaced(tree: Mapping[str, Any], path: Sequence[str], step: jax.Array) -> dict[str, Any]:
    """The tree with `step` added to one leaf; only the nodes on the way are new."""
    head, *rest = path
    if rest:
        return {**tree, head: _replaced(tree[head], rest, step)}
    leaf = jnp.asarray(tree[head])
    return {**tree, head: (leaf.astype(jnp.float32) + step).astype(leaf.dtype)}
