"""One update as one compiled program: gradients, optimiser, moving average and what to report of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, use_abstract_mesh
from jax.sharding import PartitionSpec as P

from diffusion_jax.options import unknown
from diffusion_jax.training import ema, sharding
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
    max_bad_steps: int = 0,
) -> Any:
    """The jitted function (state, batch, key) -> (state, sums); the state is donated.

    Args:
      method: gives the loss.
      optimizer: turns gradients into updates.
      ema_decay: of `ema.make_ema`.
      mesh: of `sharding.make_mesh`.
      state_shardings: a train state of shardings, from `sharding.state_shardings`.
      accumulation_steps, matmul_precision: see `make_gradients`.
      profile_decays: of the state's further averages.
      sanitize_gradients: gradients that are not finite become 0 or +-1e5 (Karras et al. 2022, released code), so that
        one overflow in half precision does not lose an update. A loss that is not finite still does.
      max_bad_steps: how many updates in a row may be left out.

    The step's `batch` is one of `sharding.global_batch`, and `key` the run's, from which the step derives its own by
    fold_in(key, state.step). The sums hold the metrics of the method, "loss", "grad_norm" (before clipping) and
    "bad_steps".

    An update whose loss, gradient or new parameters are not finite is left out: the state stays as it was but for the
    counters, and "bad_steps" is 1 where all other sums are 0. After more than max_bad_steps of them in a row the state
    does not change at all any more, so that the step that was one too many can be replayed from it.
    """
    gradients = make_gradients(
        method,
        mesh,
        state_shardings.params,
        accumulation_steps=accumulation_steps,
        matmul_precision=matmul_precision,
    )

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Sums]:
        grads, sums, prepared, metrics = gradients(state, batch, key)
        method_state = state.method_state
        if isinstance(method, WholeBatchMethod):
            method_state = method.update_state(method_state, prepared, metrics)
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
        updated = TrainState(state.step, params, opt_state, ema_params, profiles, method_state, state.bad_steps)
        # By their norm: a chain of a hundred logical ands would be compiled again into every kernel that waits for it.
        norms = jnp.stack([sums["loss"][0], sums["grad_norm"][0], optax.tree.norm(params)])
        finite = jnp.all(jnp.isfinite(norms))
        return guarded(state, updated, sums, finite, max_bad_steps)

    whole = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh), whole),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )


def make_gradients(
    method: Method,
    mesh: Mesh,
    param_shardings: Any,
    *,
    accumulation_steps: int = 1,
    matmul_precision: str = "highest",
) -> Callable[[TrainState, Batch, jax.Array], tuple[Any, Sums, Batch, Metrics]]:
    """The function (state, batch, key) -> (gradients, sums, prepared batch, metrics of its examples), not jitted.

    Args:
      method: gives the loss. One that looks at whole batches prepares them before they are cut.
      mesh: of `sharding.make_mesh`.
      param_shardings: of the gradients.
      accumulation_steps: the batch is cut into so many parts that are gone through one after the other, which divides
        the memory for activations; gradients are averaged, so the update is the same to rounding.
      matmul_precision: of float32 products and convolutions that do not name their own: "highest" is float32 on every
        device, "high" three passes of a shorter type, "default" the device's choice (TF32 on GPUs, bfloat16 on TPUs).

    Raises:
      ValueError: a precision that does not exist.
    """
    if matmul_precision not in MATMUL_PRECISIONS:
        raise unknown("training.matmul_precision", matmul_precision, MATMUL_PRECISIONS)

    def of_part(params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[tuple[Any, Sums], Metrics]:
        def loss(params: Any) -> tuple[jax.Array, tuple[Sums, Metrics]]:
            rows = next(iter(batch.values())).shape[0]
            with sharding.constrained_activations(mesh, rows):
                value, metrics = method.loss(params, batch, key, step)
            return value, ({"loss": (value.astype(jnp.float32), jnp.ones(())), **weighted_sums(metrics)}, metrics)

        (_, (sums, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return (jax.lax.with_sharding_constraint(grads, param_shardings), sums), metrics

    def of_all_parts(params: Any, batch: Batch, key: jax.Array, step: jax.Array) -> tuple[tuple[Any, Sums], Metrics]:
        if accumulation_steps == 1:
            return of_part(params, batch, key, step)
        parts = {name: split_batch(value, accumulation_steps, mesh) for name, value in batch.items()}
        first = {name: value[0] for name, value in parts.items()}
        shapes, _ = jax.eval_shape(of_part, params, first, key, step)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

        def add(total: Any, part: Batch) -> tuple[Any, Metrics]:
            new, metrics = of_part(params, part, key, step)
            return jax.tree.map(jnp.add, total, new), metrics

        (grads, sums), metrics = jax.lax.scan(add, zeros, parts)
        grads = jax.tree.map(lambda grad: grad / accumulation_steps, grads)
        return (grads, sums), jax.tree.map(join_batch, metrics)

    def gradients(state: TrainState, batch: Batch, key: jax.Array) -> tuple[Any, Sums, Batch, Metrics]:
        with jax.default_matmul_precision(matmul_precision):
            key = jax.random.fold_in(key, state.step)
            if isinstance(method, WholeBatchMethod):
                # With the mesh in sight, what has to be whole on every device can be made so.
                with use_abstract_mesh(mesh.abstract_mesh):
                    batch = method.prepare(state.method_state, batch, key)
                batch = jax.lax.with_sharding_constraint(batch, sharding.batch_sharding(mesh))
            (grads, sums), metrics = of_all_parts(state.params, batch, key, state.step)
        return grads, sums, batch, metrics

    return gradients


def guarded(
    old: TrainState, updated: TrainState, sums: Sums, finite: jax.Array, max_bad_steps: int
) -> tuple[TrainState, Sums]:
    """The state after a step and its sums, by the rule of `make_train_step`. All is decided on the device."""
    bad_steps = jnp.where(finite, 0, old.bad_steps + 1)
    stopped = old.bad_steps > max_bad_steps
    bad_steps = jnp.where(stopped, old.bad_steps, bad_steps)
    kept = finite & ~stopped
    state: TrainState = jax.tree.map(lambda new, old: jnp.where(kept, new, old), updated, old)
    step = jnp.where(bad_steps > max_bad_steps, old.step, old.step + 1)
    sums = jax.tree.map(lambda value: jnp.where(kept, value, 0), sums)
    sums["bad_steps"] = (1 - kept.astype(jnp.float32), jnp.ones(()))
    return state.replace(step=step, bad_steps=bad_steps), sums  # pyright: ignore[reportAttributeAccessIssue]


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
