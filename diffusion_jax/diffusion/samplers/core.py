"""One loop for every solver: a sampler is a table of float64 coefficients, and `sample` is one `lax.scan` over it.

Each row of the table is one evaluation of the network. It says at which input scale and timestep the network is called,
how its output becomes an estimate of x_0, and which linear combination of what is known gives the next x. What is
known is held in a few registers:

    x         the current state
    anchor    a remembered state (the start of a two-stage step, a corrected sample), for solvers that need one
    denoised  the estimate of x_0 at this row, before clipping
    history   the newest estimates, this row's first: combinations of x and the (clipped) x_0 that the table chooses

Ancestral sampling, DDIM, linear multistep, Runge-Kutta and predictor-corrector exponential integrators all have this
form; a solver's file computes coefficients and nothing else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.arrays import standard_normal

Predict = Callable[[jax.Array, jax.Array], jax.Array]
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
      langevin: 1 where the row is a Langevin corrector, whose step size follows from the data: with
        q = |unit normal| / |newest estimate|, image by image, the step of x is q^2 times, and its noise q times, what
        the other fields say. The estimate must be of the noise. 0 everywhere else.
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
    langevin: float = 0.0
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
    langevin: Column
    log_variance: Column
    variance: Column


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
    uses_langevin: bool = False
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


jax.tree_util.register_dataclass(
    Sampler,
    data_fields=["table", "init_noise_sigma"],
    meta_fields=[
        *("num_steps", "clip", "threshold", "learned_variance"),
        *("uses_anchor", "uses_langevin", "stochastic", "has_variance"),
    ],
)


class Solver(Protocol):
    """A sampler without a table, which chooses its steps as it goes."""

    @property
    def init_noise_sigma(self) -> float: ...

    def solve(
        self, predict: Predict, x_T: jax.Array, return_trajectory: bool, trajectory_stride: int
    ) -> tuple[jax.Array, jax.Array | None]: ...


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
        langevin=np.array([row.langevin for row in rows], np.float64),
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
        uses_langevin=any(row.langevin for row in rows),
        stochastic=any(row.noise or row.churn for row in rows),
        has_variance=any(row.variance for row in rows),
    )


class _State(NamedTuple):
    x: jax.Array
    anchor: jax.Array | None
    history: jax.Array  # [order, *x.shape], newest first
    frames: jax.Array | None


def sample(
    sampler: Sampler | Solver,
    predict: Predict,
    x_T: jax.Array,
    key: jax.Array | None = None,
    noise: jax.Array | None = None,
    return_trajectory: bool = True,
    trajectory_stride: int = 1,
    tilt: Predict | None = None,
    after: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs a sampler from x_T to an image.

    Args:
      sampler: the solver's table, or a solver that chooses its own steps.
      predict: predict(x, t) is the network's raw output at the sampler's own scaled input x [B, ...] and timestep t, a
        scalar of x's dtype.
      x_T: [B, ...] start, of standard deviation `sampler.init_noise_sigma`; its dtype is the dtype of the whole run.
      key: one PRNG key, from which image i uses fold_in(key, i); or keys [B], one for each image. An image is then a
        function of its own key alone, whatever the batch that it travels in.
      noise: unit normals [steps, *x_T.shape] used instead of a key, to compare with another implementation.
      return_trajectory: also return the states on the way.
      trajectory_stride: keep every so many rows (the last always), to save memory.
      tilt: tilt(x, t) is the gradient [B, ...] of a log-density in x that every step's Gaussian is multiplied by: to
        first order, its mean moves by its variance times the gradient (Sohl-Dickstein et al. 2015, appendix C). For
        samplers with `has_variance`.
      after: after(x, i) is the state [B, ...] to go on with after row i, a scalar int32, has led to x: for what is held
        to a path of its own, such as the known part of an image. For samplers that are tables.

    Returns:
      (x, trajectory): x [B, ...]; trajectory [1 + kept rows, B, ...], the start first, or None.

    Raises:
      ValueError: a stochastic sampler was given neither key nor noise, or noise of the wrong shape; or a tilt where
        steps are no Gaussians, or `after` where there is no table.
    """
    if tilt is not None and not (isinstance(sampler, Sampler) and sampler.has_variance):
        raise ValueError("tilt needs a sampler whose steps are Gaussians, such as ddpm")
    if not isinstance(sampler, Sampler):
        if after is not None:
            raise ValueError("after needs a sampler that is a table; this one chooses its own steps")
        return sampler.solve(predict, x_T, return_trajectory, trajectory_stride)
    if sampler.stochastic and key is None and noise is None:
        raise ValueError("this sampler is stochastic: give a key, or the noise itself")
    if noise is not None and noise.shape != (sampler.num_steps, *x_T.shape):
        raise ValueError(f"noise has shape {noise.shape}; it must be {(sampler.num_steps, *x_T.shape)}")
    keys = None
    if sampler.stochastic and noise is None and key is not None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x_T))) if key.ndim == 0 else key

    table = jax.tree.map(
        lambda column: jnp.asarray(column, None if column.dtype == np.int32 else x_T.dtype), sampler.table
    )
    order = table.next_x.shape[1] - 3
    slots, num_frames = _frame_slots(sampler.num_evaluations, trajectory_stride)
    frames = None
    if return_trajectory:
        frames = jnp.zeros((num_frames, *x_T.shape), x_T.dtype).at[0].set(x_T)

    def advance(state: _State, scanned: tuple[Table, jax.Array, jax.Array]) -> tuple[_State, None]:
        row, slot, place = scanned
        unit = jnp.zeros_like(x_T)
        if noise is not None:
            unit = jnp.asarray(noise, x_T.dtype)[row.step]
        elif keys is not None:
            unit = jax.vmap(lambda k: standard_normal(jax.random.fold_in(k, row.step), x_T.shape[1:], x_T.dtype))(keys)

        x = row.churn[0] * state.x + row.churn[1] * unit if sampler.stochastic else state.x
        output = predict(row.input_scale * x, row.timestep).astype(x_T.dtype)
        amount, variance = row.noise, row.variance
        if sampler.learned_variance:
            output, fraction = jnp.split(output, 2, axis=-1)
            fraction = (fraction + 1) / 2
            low, high = row.log_variance
            learned = low + fraction * (high - low)
            amount, variance = row.noise * jnp.exp(0.5 * learned), row.variance * jnp.exp(learned)
        raw = row.denoise[0] * x + row.denoise[1] * output
        denoised = sampler.bounded(raw)
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
            following = following + variance * tilt(row.input_scale * x, row.timestep).astype(x_T.dtype)
        if sampler.uses_langevin:
            ratio = 1 + row.langevin * (_norms(unit) / _norms(newest) - 1)
            following, amount = x + ratio**2 * (following - x), ratio * amount
        if sampler.stochastic:
            following = following + amount * unit
        if after is not None:
            following = after(following, place).astype(x_T.dtype)
        anchor = None if state.anchor is None else combine(row.next_anchor)
        kept = None if state.frames is None else state.frames.at[slot].set(following, mode="drop")
        return _State(following, anchor, history, kept), None

    start = _State(x_T, x_T if sampler.uses_anchor else None, jnp.zeros((order, *x_T.shape), x_T.dtype), frames)
    end, _ = jax.lax.scan(advance, start, (table, jnp.asarray(slots), jnp.arange(sampler.num_evaluations)))
    return end.x, end.frames


def _norms(x: jax.Array) -> jax.Array:
    """The Euclidean norm of each image, [B, 1, ...]."""
    return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(1, x.ndim)), keepdims=True))


def frames_kept(num_rows: int, stride: int) -> np.ndarray:
    """The rows before which the states of a trajectory stand, [frames]: 0 is the start, num_rows the result."""
    return np.unique([*range(0, num_rows + 1, stride), num_rows])


def _frame_slots(num_rows: int, stride: int) -> tuple[np.ndarray, int]:
    """Where each row's result goes in the trajectory (out of range: nowhere), and how many frames there are."""
    kept = frames_kept(num_rows, stride)
    slots = np.full(num_rows + 1, len(kept), np.int32)
    slots[kept] = np.arange(len(kept))
    return slots[1:], len(kept)


def initial_noise(
    sampler: Sampler | Solver, keys: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """x_T [B, *shape], image i from keys[i] alone. The fold keeps it apart from the noise of the steps."""
    start = jax.vmap(lambda key: standard_normal(jax.random.fold_in(key, 2**31 - 1), shape, dtype))(keys)
    return sampler.init_noise_sigma * start
