"""The gradient of a loss over a whole batch, which may be gone through in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, use_abstract_mesh
from jax.sharding import PartitionSpec as P

from diffusion_jax.options import unknown
from diffusion_jax.training import sharding
from diffusion_jax.training.method import AlternatingMethod, Batch, Loss, Method, Metrics, WholeBatchMethod

MATMUL_PRECISIONS = ("highest", "high", "default")

# name -> (sum of weighted values, sum of weights), float32 scalars
Sums = dict[str, tuple[jax.Array, jax.Array]]


def check_precision(matmul_precision: str) -> None:
    """Raises ValueError for a precision that does not exist."""
    if matmul_precision not in MATMUL_PRECISIONS:
        raise unknown("training.matmul_precision", matmul_precision, MATMUL_PRECISIONS)


def prepare(method: Method | AlternatingMethod, mesh: Mesh, method_state: Any, batch: Batch, key: jax.Array) -> Batch:
    """The batch as the losses of a step get it: of a method that looks at whole batches, as it prepares them."""
    if not isinstance(method, WholeBatchMethod):
        return batch
    # With the mesh in sight, what has to be whole on every device can be made so.
    with use_abstract_mesh(mesh.abstract_mesh):
        batch = method.prepare(method_state, batch, key)
    return jax.lax.with_sharding_constraint(batch, sharding.batch_sharding(mesh))


def make_gradients(
    loss: Loss, mesh: Mesh, param_shardings: Any, accumulation_steps: int = 1
) -> Callable[[Any, Callable[[Any], Any], Batch, jax.Array, jax.Array], tuple[Any, Sums, Metrics]]:
    """The function (trained, whole, batch, key, step) -> (gradients, sums, metrics of the examples), not jitted.

    The gradients are those of loss(whole(trained), batch, key, step) by `trained`.

    Args:
      loss: as `Method.loss`.
      mesh: of `sharding.make_mesh`.
      param_shardings: of the gradients.
      accumulation_steps: the batch is cut into so many parts that are gone through one after the other, which divides
        the memory for activations; gradients are averaged, so the update is the same to rounding.
    """

    def gradients(
        trained: Any, whole: Callable[[Any], Any], batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Sums, Metrics]:
        def of_part(batch: Batch) -> tuple[tuple[Any, Sums], Metrics]:
            def of_params(trained: Any) -> tuple[jax.Array, tuple[Sums, Metrics]]:
                rows = num_rows(batch)
                with sharding.constrained_activations(mesh, rows):
                    value, metrics = loss(whole(trained), batch, key, step)
                return value, ({"loss": (value.astype(jnp.float32), jnp.ones(())), **weighted_sums(metrics)}, metrics)

            (_, (sums, metrics)), grads = jax.value_and_grad(of_params, has_aux=True)(trained)
            return (jax.lax.with_sharding_constraint(grads, param_shardings), sums), metrics

        if accumulation_steps == 1:
            (grads, sums), metrics = of_part(batch)
            return grads, sums, metrics
        parts = jax.tree.map(lambda value: split_batch(value, accumulation_steps, mesh), batch)
        shapes, _ = jax.eval_shape(of_part, jax.tree.map(lambda value: value[0], parts))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(total: Any, part: Batch) -> tuple[Any, Metrics]:
            new, metrics = of_part(part)
            return jax.tree.map(jnp.add, total, new), metrics

        (grads, sums), metrics = jax.lax.scan(add, zeros, parts)
        grads = jax.tree.map(lambda grad: grad / accumulation_steps, grads)
        return grads, sums, jax.tree.map(join_batch, metrics)

    return gradients


def num_rows(batch: Batch) -> int:
    """B of a tree of arrays [B, ...]."""
    return len(jax.tree.leaves(batch)[0])


def weighted_sums(metrics: Metrics) -> Sums:
    """name -> (sum of values * weights, sum of weights), in float32."""
    return {
        name: (
            jnp.sum(jnp.asarray(values, jnp.float32) * weights),
            jnp.sum(jnp.broadcast_to(jnp.asarray(weights, jnp.float32), jnp.shape(values))),
        )
        for name, (values, weights) in metrics.items()
    }


def split_batch(value: jax.Array, parts: int, mesh: Mesh) -> jax.Array:
    """[B, ...] -> [parts, B / parts, ...], where part j has every parts-th row from j on.

    So every device finds its share of each part among the rows that it holds already.
    """
    value = value.reshape(value.shape[0] // parts, parts, *value.shape[1:])
    return jax.lax.with_sharding_constraint(
        jnp.moveaxis(value, 1, 0), NamedSharding(mesh, P(None, sharding.BATCH_AXES))
    )


def join_batch(parts: jax.Array) -> jax.Array:
    """[parts, B / parts, ...] -> [B, ...]: undoes `split_batch`. What is not of single examples stays in parts."""
    if parts.ndim < 2:
        return parts
    return jnp.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[2:])
