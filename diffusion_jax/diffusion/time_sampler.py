"""Drawing timesteps by how large their losses are, for objectives whose terms differ by orders of magnitude."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.options import described


class LossHistory(NamedTuple):
    """The last losses of every timestep, a ring float32 [T, history], and how many there ever were, int32 [T]."""

    losses: jax.Array
    count: jax.Array


@described(
    history="losses of a timestep that are remembered",
    uniform_prob="share of the times that is drawn uniformly, so that none is forgotten",
)
@dataclasses.dataclass(frozen=True)
class LossSecondMoment:
    """p_t proportional to sqrt(E[L_t^2]), weights 1 / (T p_t) (Nichol and Dhariwal 2021, eq. 18).

    The expectation is over the last `history` losses of a timestep; while one has fewer, all timesteps are drawn alike.
    A share `uniform_prob` of the draws is uniform, so that no timestep is forgotten.

    Pure functions of a `LossHistory`, which is the same on all devices: their losses are gathered, never averaged.
    """

    num_timesteps: int
    history: int = 10
    uniform_prob: float = 0.001

    def __post_init__(self) -> None:
        if self.history < 1:
            raise ValueError(f"history is {self.history}; it must be at least 1")
        if not 0 < self.uniform_prob <= 1:
            raise ValueError(f"uniform_prob is {self.uniform_prob}; it must be above 0 and at most 1")

    def init(self) -> LossHistory:
        """No losses yet."""
        shape = self.num_timesteps, self.history
        return LossHistory(jnp.zeros(shape, jnp.float32), jnp.zeros(self.num_timesteps, jnp.int32))

    def probabilities(self, state: LossHistory) -> jax.Array:
        """How often each timestep is drawn, float32 [T]."""
        return (1 - self.uniform_prob) * self._by_loss(state) + self.uniform_prob / self.num_timesteps

    def draw(self, state: LossHistory, uniforms: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(timesteps int32 [B], weights float32 [B]) from uniform numbers [B, 2] in [0, 1), a row for each example."""
        # Two numbers, because the rarest timesteps have less than the share of [0, 1) that float32 resolves.
        evenly = jnp.minimum((uniforms[:, 1] * self.num_timesteps).astype(jnp.int32), self.num_timesteps - 1)
        edges = jnp.cumsum(self._by_loss(state))
        by_loss = jnp.searchsorted(edges, uniforms[:, 1] * edges[-1], side="right").astype(jnp.int32)
        t = jnp.where(uniforms[:, 0] < self.uniform_prob, evenly, jnp.minimum(by_loss, self.num_timesteps - 1))
        return t, 1 / (self.num_timesteps * self.probabilities(state)[t])

    def update(self, state: LossHistory, t: jax.Array, losses: jax.Array) -> LossHistory:
        """The history with a batch's losses [B] at timesteps int32 [B] added, in the order of the batch."""
        # Of a timestep's losses, the k-th of the batch goes k places further round the ring; of more than the ring
        # holds the last ones stay.
        order = jnp.argsort(t, stable=True)
        sorted_t = t[order]
        rank = jnp.arange(len(t)) - jnp.searchsorted(sorted_t, sorted_t, side="left")
        following = jnp.searchsorted(sorted_t, sorted_t, side="right") - jnp.arange(len(t)) - 1
        slot = (state.count[sorted_t] + rank) % self.history
        slot = jnp.where(following < self.history, slot, self.history)  # dropped
        return LossHistory(
            state.losses.at[sorted_t, slot].set(losses[order].astype(jnp.float32), mode="drop"),
            state.count.at[t].add(1),
        )

    def _by_loss(self, state: LossHistory) -> jax.Array:
        size = jnp.sqrt(jnp.mean(jnp.square(state.losses), axis=1))
        total = jnp.sum(size)
        is_full = jnp.all(state.count >= self.history) & (total > 0)
        return jnp.where(is_full, size / jnp.where(total > 0, total, 1), 1 / self.num_timesteps)


def as_process() -> None:
    """Every time as often as the process says, whatever its losses."""


# A config's `time_sampler.name` picks one of these; the other fields of the section are its arguments.
TIME_SAMPLERS: dict[str, Callable[..., LossSecondMoment | None]] = {
    "process": as_process,
    "loss_second_moment": LossSecondMoment,
}
