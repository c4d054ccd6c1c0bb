"""The door of linear solvers: a table of float64 coefficients, whose rows are all the same computation.

Each row of the table is one evaluation of the network. It says at which input scale and timestep the network is called,
how its output becomes an estimate of x_0, and which linear combination of what is known gives the next x. What is
known is held in a few registers:

    x         the current state
    anchor    a remembered state (the start of a two-stage step, a corrected sample), for solvers that need one
    denoised  the estimate of x_0 at this row, before clipping
    history   the newest estimates, this row's first: combinations of x and the (clipped) x_0 that the table chooses

Ancestral sampling, DDIM, linear multistep, Runge-Kutta and predictor-corrector exponential integrators all have this
form; a solver's file computes coefficients and nothing else. The loop over the rows is that of `running`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Predict = Callable[[jax.Array, jax.Array], jax.Array]
# The unit normals [B, ...] of a solver's step, by its index.
Draw = Callable[[jax.Array], jax.Array]
# float64 NumPy outside of a compiled program, a JAX array inside.
Column = Any


@dataclasses.dataclass
class Row:
    """One evaluation of the network, with Python floats throughout.

    Attributes:
      timestep: what the network is told.
      step: index of the solver step that the row belongs to; rows of one step share one draw of noise.
      level: (alpha, sigma) of the state before the row, x = alpha x_0 + sigma noise; (0, 0) where nothing says.
      input_scale: the network sees input_scale * x.
      denoise: (on x, on output): x_0 = on_x * x + on_output * output.
      estimate: (on x, on x_0): what is pushed to the history; x_0 itself unless the solver thinks in epsilon.
      x, anchor, denoised, history: the next x is their weighted sum, plus `noise` times a unit normal.
      anchor_x, anchor_anchor, anchor_denoised, anchor_history: likewise for the next anchor.
      churn_scale, churn: before the network sees it, x becomes churn_scale * x + churn times a unit normal.
      log_variance: (smallest, largest) log variance, for networks that interpolate between the two in extra channels.
      variance: of the Gaussian that the step draws from, where it is one, for `tilt` in `sample`; times the network's
        own variance where it learns one. The last step may have a variance and add no noise.
    """

    timestep: float
    step: int
    denoise: tuple[float, float]
    level: tuple[float, float] = (0.0, 0.0)
    x: float = 0.0
    history: Sequence[float] = ()
    anchor: float = 0.0
    denoised: float = 0.0
    noise: float = 0.0
    input_scale: float = 1.0
    estimate: tuple[float, float] = (0.0, 1.0)
    anchor_x: float = 0.0
    anchor_anchor: float = 1.0
    anchor_denoised: float = 0.0
    anchor_history: Sequence[float] = ()
    churn_scale: float = 1.0
    churn: float = 0.0
    log_variance: tuple[float, float] = (0.0, 0.0)
    variance: float = 0.0


class Table(NamedTuple):
    """The rows as arrays [rows, ...]; a pytree, so that new coefficients of the same shape never recompile."""

    timestep: Column
    step: Column
    level: Column
    input_scale: Column
    denoise: Column
    estimate: Column
    next_x: Column  # on x, anchor, denoised, history...
    next_anchor: Column
    noise: Column
    churn: Column  # scale of x, amount of noise
    log_variance: Column
    variance: Column


class State(NamedTuple):
    """What a table knows between two rows.

    Attributes:
      x: [B, ...]. anchor: a remembered state of that shape, None in a table that has none.
      history: [order, B, ...], newest first.
    """

    x: jax.Array
    anchor: jax.Array | None
    history: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """A solver with its steps; build one with the functions of this package, run it with `sample`.

    Attributes:
      table: the coefficients, float64 NumPy until they meet the state.
      num_steps: number of solver steps, which is the length of `noise` in `sample`.
      init_noise_sigma: standard deviation of x_T, the state that sampling starts from.
      clip: estimates of x_0 are clipped to [-clip, clip]; None leaves them alone.
      threshold: (quantile, largest) instead of a clip: each image's estimate is clipped at this quantile of its
        magnitudes, which counts as 1 to largest, and divided by it (Saharia et al. 2022, section 2.3).
      learned_variance: the network's output has twice the channels, the second half interpolating the log variance.
      has_variance: every step draws from a Gaussian, whose mean `tilt` can move.
    """

    table: Table
    num_steps: int
    init_noise_sigma: float = 1.0
    clip: float | None = None
    threshold: tuple[float, float] | None = None
    learned_variance: bool = False
    uses_anchor: bool = False
    stochastic: bool = False
    has_variance: bool = False

    def bounded(self, denoised: jax.Array) -> jax.Array:
        """The estimates [B, ...] within the bounds of `threshold` or `clip`."""
        if self.threshold is not None:
            quantile, largest = self.threshold
            magnitudes = jnp.abs(denoised).reshape(len(denoised), -1)
            bound = jnp.clip(jnp.quantile(magnitudes, quantile, axis=1), 1, largest)
            bound = bound.reshape(-1, *(1,) * (denoised.ndim - 1))
            return jnp.clip(denoised, -bound, bound) / bound
        return denoised if self.clip is None else jnp.clip(denoised, -self.clip, self.clip)

    @property
    def timesteps(self) -> np.ndarray:
        """What the network is told at each evaluation, [rows]."""
        return np.asarray(self.table.timestep)

    @property
    def num_evaluations(self) -> int:
        """Number of network evaluations (NFE, without the doubling by guidance)."""
        return len(self.table.timestep)

    def after(self, num_rows: int) -> Sampler:
        """The sampler without its first rows, for a solver whose steps need nothing from earlier ones."""
        if not num_rows:
            return self
        table = Table(*(column[num_rows:] for column in self.table))
        begun = int(table.step[0])
        return dataclasses.replace(
            self, table=table._replace(step=table.step - begun), num_steps=self.num_steps - begun
        )

    def init(self, x_T: jax.Array) -> State:
        """The registers before the first row; see `running.Stepper`."""
        order = self.table.next_x.shape[1] - 3
        return State(x_T, x_T if self.uses_anchor else None, jnp.zeros((order, *x_T.shape), x_T.dtype))

    def step(self, state: State, i: jax.Array, predict: Predict, draw: Draw, tilt: Predict | None = None) -> State:
        """The registers after row i; see `running.Stepper`."""
        dtype, order = state.x.dtype, len(state.history)
        row = jax.tree.map(
            lambda column: jnp.asarray(column, None if column.dtype == np.int32 else dtype)[i], self.table
        )
        unit = draw(row.step) if self.stochastic else jnp.zeros_like(state.x)
        x = row.churn[0] * state.x + row.churn[1] * unit if self.stochastic else state.x
        output = predict(row.input_scale * x, row.timestep).astype(dtype)
        amount, variance = row.noise, row.variance
        if self.learned_variance:
            output, fraction = jnp.split(output, 2, axis=-1)
            fraction = (fraction + 1) / 2
            low, high = row.log_variance
            learned = low + fraction * (high - low)
            amount, variance = row.noise * jnp.exp(0.5 * learned), row.variance * jnp.exp(learned)
        raw = row.denoise[0] * x + row.denoise[1] * output
        denoised = self.bounded(raw)
        newest = row.estimate[0] * x + row.estimate[1] * denoised
        history = jnp.concatenate([newest[None], state.history[:-1]]) if order else state.history

        def combine(weights: jax.Array) -> jax.Array:
            total = weights[0] * x + weights[2] * raw
            if state.anchor is not None:
                total = total + weights[1] * state.anchor
            for k in range(order):
                total = total + weights[3 + k] * history[k]
            return total

        following = combine(row.next_x)
        if tilt is not None:
            following = following + variance * tilt(row.input_scale * x, row.timestep).astype(dtype)
        if self.stochastic:
            following = following + amount * unit
        return State(following, None if state.anchor is None else combine(row.next_anchor), history)


jax.tree_util.register_dataclass(
    Sampler,
    data_fields=["table", "init_noise_sigma"],
    meta_fields=[
        *("num_steps", "clip", "threshold", "learned_variance"),
        *("uses_anchor", "stochastic", "has_variance"),
    ],
)


def build(
    rows: Sequence[Row],
    *,
    init_noise_sigma: float = 1.0,
    clip: float | None = None,
    threshold: tuple[float, float] | None = None,
    learned_variance: bool = False,
) -> Sampler:
    """Packs rows into a sampler. Raises ValueError for an empty list or a coefficient that is not finite."""
    if not rows:
        raise ValueError("a sampler needs at least one step")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip is {clip}; it must be above 0")
    order = max(max(len(row.history), len(row.anchor_history)) for row in rows)

    def weights(*singles: float, history: Sequence[float]) -> list[float]:
        return [*singles, *history, *[0.0] * (order - len(history))]

    table = Table(
        timestep=np.array([row.timestep for row in rows], np.float64),
        step=np.array([row.step for row in rows], np.int32),
        level=np.array([row.level for row in rows], np.float64),
        input_scale=np.array([row.input_scale for row in rows], np.float64),
        denoise=np.array([row.denoise for row in rows], np.float64),
        estimate=np.array([row.estimate for row in rows], np.float64),
        next_x=np.array([weights(r.x, r.anchor, r.denoised, history=r.history) for r in rows], np.float64),
        next_anchor=np.array(
            [weights(r.anchor_x, r.anchor_anchor, r.anchor_denoised, history=r.anchor_history) for r in rows],
            np.float64,
        ),
        noise=np.array([row.noise for row in rows], np.float64),
        churn=np.array([(row.churn_scale, row.churn) for row in rows], np.float64),
        log_variance=np.array([row.log_variance for row in rows], np.float64),
        variance=np.array([row.variance for row in rows], np.float64),
    )
    for name, column in table._asdict().items():
        if not np.isfinite(column).all():
            row = int(np.argmin(np.isfinite(column).reshape(len(rows), -1).all(axis=1)))
            raise ValueError(f"the sampler's {name} is not finite at row {row}")
    return Sampler(
        table=table,
        num_steps=1 + max(row.step for row in rows),
        init_noise_sigma=init_noise_sigma,
        clip=clip,
        threshold=threshold,
        learned_variance=learned_variance,
        uses_anchor=any(row.anchor for row in rows),
        stochastic=any(row.noise or row.churn for row in rows),
        has_variance=any(row.variance for row in rows),
    )
