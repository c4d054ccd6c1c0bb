"""One update as one compiled program: gradients, optimisers, moving average and what to report of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from diffusion_jax.training import ema, sharding, subset
from diffusion_jax.training.gradients import Sums, check_precision, make_gradients, prepare
from diffusion_jax.training.method import (
    AlternatingMethod,
    Batch,
    Method,
    Metrics,
    WholeBatchMethod,
    by_part,
    drawn_with,
    pick,
    put,
    turns_of,
)
from diffusion_jax.training.state import Optimizers, TrainState
from diffusion_jax.turn import Turn

# What EDM's released code puts in the place of infinite gradients.
LARGEST_GRADIENT = 1e5

T = TypeVar("T")
TrainStep = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, Sums]]


class Taken(NamedTuple):
    """What a turn leaves: parameters and optimiser of its part, what is reported, and the gradient's norm."""

    params: Any
    opt_state: Any
    sums: Sums
    metrics: Metrics
    grad_norm: jax.Array


def make_train_step(
    method: Method | AlternatingMethod,
    optimizer: Optimizers,
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
      method: gives the loss, or the losses that are minimised in turn.
      optimizer: turns gradients into updates; of an alternating method, part -> optimiser.
      ema_decay: of `ema.make_ema`.
      mesh: of `sharding.make_mesh`.
      state_shardings: a train state of shardings, from `sharding.state_shardings`.
      accumulation_steps: see `gradients.make_gradients`.
      matmul_precision: of float32 products and convolutions that do not name their own: "highest" is float32 on every
        device, "high" three passes of a shorter type, "default" the device's choice (TF32 on GPUs, bfloat16 on TPUs).
      profile_decays: of the state's further averages.
      sanitize_gradients: gradients that are not finite become 0 or +-1e5 (Karras et al. 2022, released code), so that
        one overflow in half precision does not lose an update. A loss that is not finite still does.
      max_bad_steps: how many updates in a row may be left out.

    The step's `batch` is one of `sharding.global_batch`, and `key` the run's, from which the step derives its own by
    fold_in(key, state.step). The sums hold the metrics of the method, "loss", "grad_norm" (before clipping) and
    "bad_steps"; of an alternating method also "loss_<turn>" and "grad_norm_<turn>".

    An update whose loss, gradient or new parameters are not finite is left out, with all its turns: the state stays as
    it was but for the counters, and "bad_steps" is 1 where all other sums are 0. After more than max_bad_steps of them
    in a row the state does not change at all any more, so that the step that was one too many can be replayed from it.

    Raises:
      ValueError: a precision that does not exist, or turns that cannot be.
    """
    check_precision(matmul_precision)
    turns, averaged = turns_of(method), drawn_with(method)
    takes = [
        _make_turn(turn, by_part(optimizer)[turn.part], mesh, state_shardings, accumulation_steps, sanitize_gradients)
        for turn in turns
    ]

    def train_step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Sums]:
        params, opt_state, sums, metrics, norms = state.params, state.opt_state, {}, {}, []
        with jax.default_matmul_precision(matmul_precision):
            key = jax.random.fold_in(key, state.step)
            batch = prepare(method, mesh, state.method_state, batch, key)
            for turn, take in zip(turns, takes, strict=True):
                taken = take(params, opt_state, state.frozen, batch, key, state.step)
                params, opt_state = put(params, turn.part, taken.params), put(opt_state, turn.part, taken.opt_state)
                sums, metrics = {**sums, **taken.sums}, {**metrics, **taken.metrics}
                norms.append(taken.grad_norm)
        method_state = state.method_state
        if isinstance(method, WholeBatchMethod):
            method_state = method.update_state(method_state, batch, metrics)
        average = pick(params, averaged)
        ema_params = ema.update(state.ema_params, average, ema_decay(state.step))
        profiles = tuple(
            ema.update(profile, average, decay(state.step))
            for profile, decay in zip(state.profiles, profile_decays, strict=True)
        )
        losses = [sums[_reported("loss", turn)][0] for turn in turns]
        if isinstance(method, AlternatingMethod):
            sums["loss"] = sums[_reported("loss", turns[0])]
        grad_norm = norms[0] if len(norms) == 1 else optax.tree.norm(norms)
        sums["grad_norm"] = (grad_norm, jnp.ones(()))
        updated = TrainState(
            state.step, params, opt_state, ema_params, profiles, method_state, state.bad_steps, state.frozen
        )
        # By their norm: a chain of a hundred logical ands would be compiled again into every kernel that waits for it.
        finite = jnp.all(jnp.isfinite(jnp.stack([*losses, grad_norm, optax.tree.norm(params)])))
        return guarded(state, updated, sums, finite, max_bad_steps)

    whole = sharding.replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(state_shardings, sharding.batch_sharding(mesh), whole),
        out_shardings=(state_shardings, whole),
        donate_argnums=0,
    )


def _make_turn(
    turn: Turn,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    state_shardings: TrainState,
    accumulation_steps: int,
    sanitize_gradients: bool,
) -> Callable[[Any, Any, Any, Batch, jax.Array, jax.Array], Taken]:
    """The function (params, opt_state, frozen, batch, key, step) -> what the turn leaves of its part."""
    shardings = pick(state_shardings.params, turn.part)
    gradients = make_gradients(turn.loss, mesh, shardings, accumulation_steps)

    def take(params: Any, opt_state: Any, frozen: Any, batch: Batch, key: jax.Array, step: jax.Array) -> Taken:
        trained, moments = pick(params, turn.part), pick(opt_state, turn.part)

        def taken() -> Taken:
            grads, sums, metrics = gradients(trained, whole_of(params, turn.part, frozen), batch, key, step)
            if sanitize_gradients:
                grads = jax.tree.map(
                    lambda grad: jnp.nan_to_num(grad, nan=0.0, posinf=LARGEST_GRADIENT, neginf=-LARGEST_GRADIENT), grads
                )
            updates, changed = optimizer.update(grads, moments, trained)
            norm = optax.tree.norm(grads)
            if turn.name:
                sums, metrics = _renamed(sums, turn), _renamed(metrics, turn)
                sums[_reported("grad_norm", turn)] = (norm, jnp.ones(()))
            return Taken(optax.apply_updates(trained, updates), changed, sums, metrics, norm)

        if turn.every == 1:
            return taken()
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(taken))
        return jax.lax.cond(step % turn.every == 0, taken, lambda: nothing._replace(params=trained, opt_state=moments))

    return take


def whole_of(params: Any, part: str, frozen: Any) -> Callable[[Any], Any]:
    """From the trained parameters of a part to all parameters, as a loss takes them."""
    return lambda trained: subset.merge(put(params, part, trained), frozen)


def _reported(name: str, turn: Turn) -> str:
    return f"{name}_{turn.name}" if turn.name else name


def _renamed(values: Mapping[str, T], turn: Turn) -> dict[str, T]:
    return {_reported(name, turn) if name == "loss" else name: value for name, value in values.items()}


def guarded(
    old: TrainState, updated: TrainState, sums: Sums, finite: jax.Array, max_bad_steps: int
) -> tuple[TrainState, Sums]:
    """The state after a step and its sums, by the rule of `make_train_step`. All is decided on the device."""
    bad_steps = jnp.where(finite, 0, old.bad_steps + 1)
    stopped = old.bad_steps > max_bad_steps
    bad_steps = jnp.where(stopped, old.bad_steps, bad_steps)
    kept = finite & ~stopped
    # What is frozen goes through untouched.
    pair = [dataclasses.replace(state, frozen=()) for state in (updated, old)]
    state: TrainState = jax.tree.map(lambda new, old: jnp.where(kept, new, old), *pair)
    step = jnp.where(bad_steps > max_bad_steps, old.step, old.step + 1)
    sums = jax.tree.map(lambda value: jnp.where(kept, value, 0), sums)
    sums["bad_steps"] = (1 - kept.astype(jnp.float32), jnp.ones(()))
    return dataclasses.replace(state, step=step, bad_steps=bad_steps, frozen=old.frozen), sums
