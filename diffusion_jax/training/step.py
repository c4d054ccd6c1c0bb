"""One update as one compiled program: gradients, optimiser, moving average and what to report of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, use_abstract_mesh
from jax.sharding import PartitionSpec as P

from diffusion_jax.training import ema, sharding
from diffusion_jax.training.choices import unknown
from diffusion_jax.training.method import Batch, Method, Metrics, WholeBatchMethod
from diffusion_jax.training.state import TrainState

MATMUL_PRECISIONS = ("highest", "high", "default")
# What EDM's released code puts in the place of infinite gradients.
LARGEST_GRADIENT = 1e5

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
    profile_decays: Sequence[ema.Decay] = (),
    sanitize_gradients: bool = False,
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
      profile_decays: of the state's further averages.
      sanitize_gradients: gradients that are not finite become 0 or +-1e5 (Karras et al. 2022, released code), so that
        one overflow in half precision does not end a run. A loss that is not finite still does.

    The step's `batch` is one of `sharding.global_batch`, and `key` the run's, from which the step derives its own by
    fold_in(key, state.step). A method that looks at whole batches prepares them before they are cut. The sums hold the
    metrics of the method, "loss" and "grad_norm" (before clipping).
    """
    if matmul_precision not in MATMUL_PRECISIONS:
        raise unknown("training.matmul_precision", matmul_precision, MATMUL_PRECISIONS)

    def gradients(params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[tuple[Any, Sums], Metrics]:
        def loss(params: Any) -> tuple[jax.Array, tuple[Sums, Metrics]]:
            value, metrics = method.loss(params, batch, key, step)
            return value, ({"loss": (value.astype(jnp.float32), jnp.ones(())), **weighted_sums(metrics)}, metrics)

        (_, (sums, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return (jax.lax.with_sharding_constraint(grads, state_shardings.params), sums), metrics

    def accumulated_gradients(
        params: Any, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[tuple[Any, Sums], Metrics]:
        if accumulation_steps == 1:
            return gradients(params, batch, key, step)
        parts = {name: split_batch(value, accumulation_steps, mesh) for name, value in batch.items()}
        first = {name: value[0] for name, value in parts.items()}
        shapes, _ = jax.eval_shape(gradients, params, first, key, step)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(total: Any, part: Batch) -> tuple[Any, Metrics]:
            new, metrics = gradients(params, part, key, step)
            return jax.tree.map(jnp.add, total, new), metrics

        (grads, sums), metrics = jax.lax.scan(add, zeros, parts)
        grads = jax.tree.map(lambda grad: grad / accumulation_steps, grads)
        return (grads, sums), jax.tree.map(join_batch, metrics)

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Sums]:
        method_state = state.method_state
        with jax.default_matmul_precision(matmul_precision):
            key = jax.random.fold_in(key, state.step)
            if isinstance(method, WholeBatchMethod):
                # With the mesh in sight, what has to be whole on every device can be made so.
                with use_abstract_mesh(mesh.abstract_mesh):
                    batch = method.prepare(method_state, batch, key)
                batch = jax.lax.with_sharding_constraint(batch, sharding.batch_sharding(mesh))
            (grads, sums), metrics = accumulated_gradients(state.params, batch, key, state.step)
            if isinstance(method, WholeBatchMethod):
                method_state = method.update_state(method_state, batch, metrics)
        if sanitize_gradients:
            grads = jax.tree.map(
                lambda grad: jnp.nan_to_num(grad, nan=0.0, posinf=LARGEST_GRADIENT, neginf=-LARGEST_GRADIENT), grads
            )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = ema.update(state.ema_params, params, ema_decay(state.step))
        profiles = tuple(
            ema.update(profile, params, decay(state.step))
            for profile, decay in zip(state.profiles, profile_decays, strict=True)
        )
        sums["grad_norm"] = (optax.tree.norm(grads), jnp.ones(()))
        return TrainState(state.step + 1, params, opt_state, ema_params, profiles, method_state), sums

    whole = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh), whole),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )


def join_batch(parts: jax.Array) -> jax.Array:
    """[parts, B / parts, ...] -> [B, ...]: undoes `split_batch`. What is not of single examples stays in parts."""
    if parts.ndim < 2:
        return parts
    return jnp.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[2:])


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
