"""One update as one compiled program: gradients, optimiser, moving average and what to report of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from diffusion_jax.training import ema, sharding
from diffusion_jax.training.choices import unknown
from diffusion_jax.training.method import Batch, Method, Metrics
from diffusion_jax.training.state import TrainState

MATMUL_PRECISIONS = ("highest", "high", "default")

# name -> (sum of weighted values, sum of weights), float32 scalars
Sums = dict[str, tuple[jax.Array, jax.Array]]
TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Sums]]


def make_train_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    ema_decay: ema.Decay,
    mesh: Mesh,
    state_shardings: TrainState,
    *,
    accumulation_steps: int = 1,
    matmul_precision: str = "highest",
) -> Any:
    """The jitted function (state, batch, key) -> (state, sums); the state is donated.

    Args:
      method: gives the loss.
      optimizer: turns gradients into updates.
      ema_decay: of `ema.make_ema`.
      mesh: of `sharding.make_mesh`.
      state_shardings: a train state of shardings, from `sharding.state_shardings`.
      accumulation_steps: the batch is cut into so many parts that are gone through one after the other, which divides
        the memory for activations; gradients are averaged, so the update is the same to rounding.
      matmul_precision: of float32 products and convolutions that do not name their own: "highest" is float32 on every
        device, "high" three passes of a shorter type, "default" the device's choice (TF32 on GPUs, bfloat16 on TPUs).

    The step's `batch` is one of `sharding.global_batch`, and `key` the run's, from which the step derives its own by
    fold_in(key, state.step). The sums hold the metrics of the method, "loss" and "grad_norm" (before clipping).
    """
    if matmul_precision not in MATMUL_PRECISIONS:
        raise unknown("training.matmul_precision", matmul_precision, MATMUL_PRECISIONS)

    def gradients(params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Any, Sums]:
        def loss(params: Any) -> tuple[jax.Array, Sums]:
            value, metrics = method.loss(params, batch, key, step)
            return value, {"loss": (value.astype(jnp.float32), jnp.ones(())), **weighted_sums(metrics)}

        (_, sums), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.lax.with_sharding_constraint(grads, state_shardings.params), sums

    def accumulated_gradients(params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[Any, Sums]:
        if accumulation_steps == 1:
            return gradients(params, batch, key, step)
        parts = {name: split_batch(value, accumulation_steps, mesh) for name, value in batch.items()}
        first = {name: value[0] for name, value in parts.items()}
        shapes = jax.eval_shape(gradients, params, first, key, step)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(total: Any, part: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradients(params, part, key, step)), None

        (grads, sums), _ = jax.lax.scan(add, zeros, parts)
        return jax.tree.map(lambda grad: grad / accumulation_steps, grads), sums

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Sums]:
        with jax.default_matmul_precision(matmul_precision):
            key = jax.random.fold_in(key, state.step)
            grads, sums = accumulated_gradients(state.params, batch, key, state.step)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = ema.update(state.ema_params, params, ema_decay(state.step))
        sums["grad_norm"] = (optax.tree.norm(grads), jnp.ones(()))
        return TrainState(state.step + 1, params, opt_state, ema_params), sums

    whole = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh), whole),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )


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
