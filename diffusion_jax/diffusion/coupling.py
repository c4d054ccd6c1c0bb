"""Which noise goes with which image of a batch: the optimal-transport coupling of flow matching (Tong et al. 2024).

With the pairs that minimise the squared distances, paths from noise to images cross less than with random pairs, and
are straighter to follow when sampling (arXiv:2302.00482, section 3.2.3).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec, get_abstract_mesh

INDEPENDENT, OPTIMAL = "independent", "optimal_transport"
COUPLINGS = (INDEPENDENT, OPTIMAL)

# Costs become integers up to this over N + 1, which are then multiplied by N + 1. Each of the eight phases, with steps
# 8^7 to 1, raises prices by at most this and its step, so that nothing exceeds 32 bits.
_SCALE = 2**27
_FIRST_STEP = 8**7
_STEP_RATIO = 8
# Rows that bid at once. Few are left in most rounds.
_BIDDERS = 16


def optimal_noise(x0: jax.Array, noise: jax.Array) -> jax.Array:
    """The noise [N, ...], permuted so that the sum of |x0[i] - noise[i]|^2 is smallest."""
    images, samples = (jnp.reshape(x, (len(x), -1)).astype(jnp.float32) for x in (x0, noise))
    # What depends on an image or on a sample alone does not change which permutation is best. Without it the costs
    # span a smaller range, and are rounded to smaller steps.
    images = images - images.mean(0)
    cost = -jnp.matmul(images, samples.T, precision="highest")
    return noise[optimal_assignment(cost)]


def optimal_assignment(cost: jax.Array) -> jax.Array:
    """The permutation, int32 [N], that minimises sum(cost[i, permutation[i]]) for costs float [N, N].

    Bertsekas' auction (1988) in integers, with several bidders at once and steps that shrink in phases: exact for the
    costs rounded to 2^27 / (N + 1) levels between their smallest and largest, so that the mean cost is within a level
    of the smallest. Every device computes the same. On two CPU cores 128 pairs of images take some milliseconds, 1024
    half a second, and points of the plane, which are harder, a few times as long.
    """
    n = len(cost)
    if n == 1:
        return jnp.zeros(1, jnp.int32)
    cost = jnp.clip(jnp.nan_to_num(cost.astype(jnp.float32)), -1e30, 1e30)  # an auction of infinities may not end
    low, high = cost.min(), cost.max()
    levels = jnp.rint((high - cost) / jnp.maximum(high - low, 1e-30) * (_SCALE // (n + 1)))
    value = _repeated(jnp.clip(levels, 0, _SCALE // (n + 1)).astype(jnp.int32) * (n + 1))

    def phase(carry: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        price, _, step = carry
        price, owner = _auction(value, price - price.min(), step)
        return price, owner, step // _STEP_RATIO

    # With a step of 1, below the (N + 1) between two sums of costs, what the auction ends with is the optimum.
    start = jnp.zeros(n, jnp.int32), jnp.zeros(n, jnp.int32), jnp.int32(_FIRST_STEP)
    _, owner, _ = jax.lax.while_loop(lambda carry: carry[2] > 0, phase, start)
    return jnp.zeros(n, jnp.int32).at[owner].set(jnp.arange(n, dtype=jnp.int32))


def _repeated(x: jax.Array) -> jax.Array:
    """x whole on every device, where there is a mesh: rows on other devices would cost a message in every round."""
    return x if get_abstract_mesh().empty else jax.lax.with_sharding_constraint(x, PartitionSpec())


def _auction(value: jax.Array, price: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(prices, owner of each column): every row ends within `step` of what it would like best at these prices."""
    n = len(value)
    columns = jnp.arange(n, dtype=jnp.int32)
    nobody = jnp.int32(n)

    def bid(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        price, owner = carry
        is_free = jnp.ones(n, bool).at[owner].set(False, mode="drop")
        rows = jnp.nonzero(is_free, size=min(n, _BIDDERS), fill_value=n)[0].astype(jnp.int32)
        net = value[rows] - price  # a row that is only fill is the last one, and is masked below
        best, column = jnp.max(net, axis=1), jnp.argmax(net, axis=1)
        wanted = columns == column[:, None]
        second = jnp.max(jnp.where(wanted, jnp.iinfo(jnp.int32).min, net), axis=1)
        offers = jnp.where(wanted & (rows < n)[:, None], (price[column] + best - second + step)[:, None], -1)
        highest, winner = jnp.max(offers, axis=0), rows[jnp.argmax(offers, axis=0)]
        return jnp.where(highest >= 0, highest, price), jnp.where(highest >= 0, winner, owner)

    start = price, jnp.full(n, nobody)
    return jax.lax.while_loop(lambda carry: jnp.any(carry[1] == nobody), bid, start)
