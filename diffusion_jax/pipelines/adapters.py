"""Changes of weights by few numbers, added while the program runs.

LoRA (Hu et al. 2021, arXiv:2106.09685), DoRA (Liu et al. 2024, arXiv:2402.09353), LoHa (FedPara, Hyeon-Woo et al.
2022, arXiv:2108.06098) and LoKr (Yeh et al. 2023, arXiv:2309.14859). Kernels are [in, out] of dense layers and
[k, k, in, out] of convolutions; factors of a change include its own scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class LowRank(NamedTuple):
    """down [..., in, r] @ up [r, out]."""

    down: Any
    up: Any


class Hadamard(NamedTuple):
    """The product, entry by entry, of two low-rank changes (LoHa)."""

    first: LowRank
    second: LowRank


class Kronecker(NamedTuple):
    """The Kronecker product of [a, b] and [..., c, d]: [..., a c, b d] (LoKr)."""

    first: Any
    second: Any


class Decomposed(NamedTuple):
    """A change of the direction of each output's weights, whose length is the magnitude [out] (DoRA)."""

    change: LowRank | Hadamard | Kronecker
    magnitude: Any


Factors = LowRank | Hadamard | Kronecker | Decomposed
# network -> path of a kernel, joined by "/" -> its change
Adapter = Mapping[str, Mapping[str, Factors]]


def change(factors: LowRank | Hadamard | Kronecker) -> jax.Array:
    """What is added to the kernel, float32, of its shape."""
    if isinstance(factors, LowRank):
        return jnp.matmul(factors.down.astype(jnp.float32), factors.up.astype(jnp.float32))
    if isinstance(factors, Hadamard):
        return change(factors.first) * change(factors.second)
    first, second = (x.astype(jnp.float32) for x in factors)
    product = jnp.einsum("ab,...cd->...acbd", first, second)
    *spatial, a, c, b, d = product.shape
    return product.reshape(*spatial, a * c, b * d)


def step(kernel: jax.Array, factors: Factors, weight: jax.Array) -> jax.Array:
    """The float32 difference that a change of this weight makes to the kernel."""
    if not isinstance(factors, Decomposed):
        return weight * change(factors)
    kernel = kernel.astype(jnp.float32)
    moved = kernel + weight * change(factors.change)
    length = jnp.sqrt(jnp.sum(jnp.square(moved), axis=tuple(range(moved.ndim - 1))))
    return moved * (factors.magnitude.astype(jnp.float32) / length) - kernel


def apply(params: Mapping[str, Any], adapters: Sequence[Adapter], weights: jax.Array) -> dict[str, Any]:
    """The parameters of all networks, kernels with changes W + sum_i step(W, change_i, weights[i])."""
    changed = dict(params)
    for i, adapter in enumerate(adapters):
        for network, kernels in adapter.items():
            for path, factors in kernels.items():
                places = path.split("/")
                difference = step(_leaf(params[network], places), factors, weights[i])
                changed[network] = _replaced(changed[network], places, difference)
    return changed


def _leaf(tree: Mapping[str, Any], path: Sequence[str]) -> jax.Array:
    for name in path:
        tree = tree[name]
    return jnp.asarray(tree)


def _replaced(tree: Mapping[str, Any], path: Sequence[str], difference: jax.Array) -> dict[str, Any]:
    """The tree with `difference` added to one leaf; only the nodes on the way are new."""
    head, *rest = path
    if rest:
        return {**tree, head: _replaced(tree[head], rest, difference)}
    leaf = jnp.asarray(tree[head])
    return {**tree, head: (leaf.astype(jnp.float32) + difference).astype(leaf.dtype)}
