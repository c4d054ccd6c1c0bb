"""Mean and covariance of features, gathered batch by batch on the devices, in float32 and yet to float64 accuracy.

A Frechet distance subtracts numbers that agree in many digits, so sums in float32 are not enough, and float64 does
not exist on a TPU. Here both sources of error are removed. Products: each batch is cut into four slices of eight
bits, which are integers, so their Gram matrices are exact in float32 (Ozaki et al. 2012), on matrix units too,
since bfloat16 and TF32 hold eight bits. Sums: a running sum is an unevaluated pair of float32 (Dekker 1971), added to
without rounding loss (Knuth's two-sum). Order of images, batch size, devices and hosts therefore change the result by
about 1e-13 of it, and only moments, never features, travel between devices.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike
from numpy.typing import NDArray

SLICES, SLICE_BITS = 4, 8
# Slices are integers up to 2^7: the sum of so many products, and twice it, is exact in the 24 bits of a float32.
EXACT_ROWS = 2 ** (23 - 2 * (SLICE_BITS - 1))
# Slice i is below 2^-(8i + 1) of the largest value: the two pairs left out are below 2^-42 of its square.
_PAIRS = tuple((i, j) for i in range(SLICES) for j in range(i, SLICES) if i + j <= 4)

Float64 = NDArray[np.float64]


class Pair(NamedTuple):
    """The sum of two float32 arrays: about 48 bits."""

    high: jax.Array
    low: jax.Array


class Moments(NamedTuple):
    """How many rows there were, their sum [d] and the sum of their outer products [d, d]; a pytree."""

    count: jax.Array
    sum: Pair
    gram: Pair


def empty(dim: int) -> Moments:
    """The moments of no rows of width `dim`."""
    return Moments(jnp.zeros((), jnp.int32), _zero((dim,)), _zero((dim, dim)))


def update(moments: Moments, features: jax.Array, mask: ArrayLike | None = None) -> Moments:
    """Adds features [B, d] float32, of which rows with a false mask [B] count as absent. Pure; to be jitted."""
    if features.ndim != 2 or features.shape[1] != len(moments.sum.high):
        raise ValueError(f"features must be [B, {len(moments.sum.high)}], got {tuple(features.shape)}")
    present = jnp.ones(len(features), bool) if mask is None else jnp.asarray(mask, bool)
    rows = jnp.where(present[:, None], features.astype(jnp.float32), 0.0)
    for start in range(0, len(rows), EXACT_ROWS):
        moments = _add_exactly(moments, rows[start : start + EXACT_ROWS])
    return moments._replace(count=moments.count + present.sum(dtype=jnp.int32))


def merge(a: Moments, b: Moments) -> Moments:
    """The moments of the rows of both; neither order nor grouping matters beyond 1e-13."""
    return Moments(a.count + b.count, _add_pairs(a.sum, b.sum), _add_pairs(a.gram, b.gram))


def finalize(moments: Moments) -> tuple[Float64, Float64, int]:
    """(mean [d], unbiased covariance [d, d], number of rows N), float64 on the host.

    Raises ValueError for fewer than two rows, and for features that were not finite.
    """
    count = int(moments.count)
    if count < 2:
        raise ValueError(f"a covariance needs at least 2 images, got {count}")
    total, gram = (np.asarray(pair.high, np.float64) + np.asarray(pair.low, np.float64) for pair in moments[1:])
    if not (np.isfinite(total).all() and np.isfinite(gram).all()):
        raise ValueError("features must be finite, got NaN or infinity")
    mean = total / count
    covariance = (gram - count * np.outer(mean, mean)) / (count - 1)
    return mean, (covariance + covariance.T) / 2.0, count


def empty_shards(dim: int, mesh: Mesh) -> Moments:
    """One empty `Moments` for every device of the mesh, stacked on a leading axis that is split over them."""
    sharding = NamedSharding(mesh, P(mesh.axis_names))
    stack = jax.jit(lambda: jax.tree.map(lambda x: jnp.broadcast_to(x, (mesh.size, *x.shape)), empty(dim)),
                    out_shardings=sharding)  # fmt: skip
    return stack()


def update_shards(shards: Moments, features: jax.Array, mask: jax.Array) -> Moments:
    """Each device adds its part of features [B, d] and mask [B] to its own moments: nothing is sent.

    B must be a multiple of the number of devices, and the features split over them. To be jitted.
    """
    devices = len(shards.count)
    parts = features.reshape(devices, -1, features.shape[-1]), mask.reshape(devices, -1)
    return jax.vmap(update)(shards, *parts)


def collect(shards: Moments, mesh: Mesh) -> Moments:
    """The moments of all devices of all hosts, on every one of them: the one thing that is gathered."""

    return _fold_on(mesh)(shards)


@functools.cache
def _fold_on(mesh: Mesh) -> Callable[[Moments], Moments]:
    def fold(shards: Moments) -> Moments:
        start = jax.tree.map(lambda x: jnp.zeros(x.shape[1:], x.dtype), shards)
        return jax.lax.scan(lambda total, shard: (merge(total, shard), None), start, shards)[0]

    return jax.jit(fold, out_shardings=NamedSharding(mesh, P()))


def _add_exactly(moments: Moments, rows: jax.Array) -> Moments:
    """Adds at most `EXACT_ROWS` rows."""
    # For each feature a power of two above its values, so that scaling is exact; zeros stay zero, NaN stays NaN.
    largest = jnp.abs(rows).max(axis=0, initial=0.0)
    exponent = jnp.where(largest > 0, jnp.floor(jnp.log2(jnp.maximum(largest, 1e-30))) + 2, 0.0)
    rest = _times_power(rows, -exponent)
    slices = []
    for _ in range(SLICES):
        # |rest| < 1/2 here: an integer of seven bits and a sign, and what is left over, exactly
        whole = jnp.round(rest * 2**SLICE_BITS)
        slices.append(whole)
        rest = rest * 2**SLICE_BITS - whole
    # Loops of the compiled program, not of Python: eight copies of all this would take seconds to compile.
    stacked = jnp.stack(slices)

    def add_sum(total: Pair, part: tuple[jax.Array, jax.Array]) -> tuple[Pair, None]:
        values, bits = part
        return _add(total, _times_power(values.sum(axis=0), exponent - bits)), None

    def add_product(gram: Pair, pair: tuple[jax.Array, jax.Array]) -> tuple[Pair, None]:
        i, j = pair
        product = jnp.einsum("bi,bj->ij", stacked[i], stacked[j], precision="default")
        product = jnp.where(i == j, product, product + product.T)
        return _add(gram, _times_power(product, exponent[:, None] + exponent - SLICE_BITS * (i + j + 2))), None

    bits = SLICE_BITS * jnp.arange(1, SLICES + 1)
    total, _ = jax.lax.scan(add_sum, moments.sum, (stacked, bits))
    gram, _ = jax.lax.scan(add_product, moments.gram, (jnp.array(_PAIRS)[:, 0], jnp.array(_PAIRS)[:, 1]))
    return moments._replace(sum=total, gram=gram)


def _times_power(x: jax.Array, exponent: ArrayLike) -> jax.Array:
    # exp2 is off by a rounding on some backends; ldexp is exact
    return jnp.ldexp(x, jnp.asarray(exponent, jnp.int32))


def _zero(shape: tuple[int, ...]) -> Pair:
    return Pair(jnp.zeros(shape, jnp.float32), jnp.zeros(shape, jnp.float32))


def _two_sum(a: jax.Array, b: jax.Array) -> Pair:
    """a + b as the rounded sum and its error (Knuth 1969): exact as long as nobody reorders it, and XLA does not."""
    high = a + b
    back = high - a
    return Pair(high, (a - (high - back)) + (b - back))


def _add(pair: Pair, x: jax.Array) -> Pair:
    high, error = _two_sum(pair.high, x)
    return _two_sum(high, error + pair.low)


def _add_pairs(a: Pair, b: Pair) -> Pair:
    high, error = _two_sum(a.high, b.high)
    return _two_sum(high, error + (a.low + b.low))
