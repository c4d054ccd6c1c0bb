"""One loop for every solver, whole or in parts: `sample` is `begin`, `advance` to the end, and `finish`.

A solver has two doors. What is linear in the network's outputs is a table of coefficients (`core`); anything else is a
`Stepper` of its own, as the adaptive solver and Langevin's corrector are. A table is a Stepper too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.arrays import standard_normal
from diffusion_jax.diffusion.samplers.core import Draw, Predict

After = Callable[[jax.Array, jax.Array], jax.Array]


class Stepper(Protocol):
    """A solver. It must be a pytree, or static in one, so that programs take it as an argument."""

    @property
    def num_evaluations(self) -> int:
        """Number of its steps, after each of which there is a state to show."""
        ...

    @property
    def num_steps(self) -> int:
        """Number of draws of noise, which is the length of `noise` in `sample`."""
        ...

    @property
    def timesteps(self) -> np.ndarray:
        """What the network is told at each step, [num_evaluations]."""
        ...

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of x_T."""
        ...

    @property
    def clip(self) -> float | None: ...

    @property
    def stochastic(self) -> bool:
        """Whether its steps draw noise."""
        ...

    @property
    def learned_variance(self) -> bool:
        """Whether the network's output has channels for a variance."""
        ...

    @property
    def has_variance(self) -> bool:
        """Whether every step draws from a Gaussian, so that `tilt` can move its mean."""
        ...

    def init(self, x_T: jax.Array) -> Any:
        """What it knows before its first step: a NamedTuple of arrays, one of them the state `x` [B, ...]."""
        ...

    def step(self, state: Any, i: jax.Array, predict: Predict, draw: Draw, tilt: Predict | None = None) -> Any:
        """What it knows after step i, a scalar int32. draw(k) are the unit normals of draw k."""
        ...


class State(NamedTuple):
    """What a solver knows that keeps nothing but the state x [B, ...]."""

    x: jax.Array


class Run(NamedTuple):
    """A run that has come to some place. It is a pytree: it can be kept, moved and gone on with by any program.

    Attributes:
      place: how many steps are done, int32.
      state: what the solver knows; `state.x` is the state of the images.
      frames: the trajectory so far, [1 + kept steps, B, ...], or None.
      slots: where each step's result goes in the trajectory, int32 [steps].
      keys: of the images [B], or None. noise: the unit normals themselves, or None.
    """

    place: jax.Array
    state: Any
    frames: jax.Array | None
    slots: jax.Array
    keys: jax.Array | None
    noise: jax.Array | None


def begin(
    sampler: Stepper,
    x_T: jax.Array,
    key: jax.Array | None = None,
    noise: jax.Array | None = None,
    return_trajectory: bool = False,
    trajectory_stride: int = 1,
) -> Run:
    """A run before its first step; the arguments are those of `sample`.

    Raises:
      ValueError: a stochastic sampler was given neither key nor noise, or noise of the wrong shape.
    """
    if sampler.stochastic and key is None and noise is None:
        raise ValueError("this sampler is stochastic: give a key, or the noise itself")
    if noise is not None and noise.shape != (sampler.num_steps, *x_T.shape):
        raise ValueError(f"noise has shape {noise.shape}; it must be {(sampler.num_steps, *x_T.shape)}")
    keys = None
    if sampler.stochastic and noise is None and key is not None:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(x_T))) if key.ndim == 0 else key
    slots, num_frames = _frame_slots(sampler.num_evaluations, trajectory_stride)
    frames = None
    if return_trajectory:
        frames = jnp.zeros((num_frames, *x_T.shape), x_T.dtype).at[0].set(x_T)
    noise = None if noise is None else jnp.asarray(noise, x_T.dtype)
    return Run(jnp.int32(0), sampler.init(x_T), frames, jnp.asarray(slots), keys, noise)


def advance(
    sampler: Stepper,
    predict: Predict,
    run: Run,
    num_steps: int | jax.Array,
    tilt: Predict | None = None,
    after: After | None = None,
) -> Run:
    """The run some steps later, at its end at the latest.

    num_steps may be a traced value, so that one program serves every part, and however a run is cut it then ends in
    the same bits:

        part = jax.jit(lambda run, count: samplers.advance(sampler, predict, run, count))

    They are those of `sample` too, unless the network is so small that XLA unrolls the loop around it, whose number of
    turns it knows there: a few elementwise operations on the CPU may then differ in the last bit.
    """
    _check(sampler, tilt)
    step = _step(sampler, predict, run, tilt, after)
    stop = jnp.minimum(run.place + num_steps, sampler.num_evaluations)
    state, frames = jax.lax.fori_loop(run.place, stop, lambda i, carry: step(carry, i), (run.state, run.frames))
    return run._replace(place=stop, state=state, frames=frames)


def finish(sampler: Stepper, run: Run) -> tuple[jax.Array, jax.Array | None]:
    """What `sample` returns, of a run at its end; before that the state there, and zeros for what is to come."""
    return run.state.x, run.frames


def sample(
    sampler: Stepper,
    predict: Predict,
    x_T: jax.Array,
    key: jax.Array | None = None,
    noise: jax.Array | None = None,
    return_trajectory: bool = True,
    trajectory_stride: int = 1,
    tilt: Predict | None = None,
    after: After | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """Runs a sampler from x_T to an image.

    Args:
      sampler: the solver's table, or another `Stepper`.
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
        to a path of its own, such as the known part of an image.

    Returns:
      (x, trajectory): x [B, ...]; trajectory [1 + kept rows, B, ...], the start first, or None.

    Raises:
      ValueError: a stochastic sampler was given neither key nor noise, or noise of the wrong shape; or a tilt where
        steps are no Gaussians.
    """
    _check(sampler, tilt)
    run = begin(sampler, x_T, key, noise, return_trajectory, trajectory_stride)
    step = _step(sampler, predict, run, tilt, after)
    # With an end that is no traced value, the loop can be differentiated.
    state, frames = jax.lax.fori_loop(
        0, sampler.num_evaluations, lambda i, carry: step(carry, jnp.int32(i)), (run.state, run.frames)
    )
    return finish(sampler, run._replace(state=state, frames=frames))


def _check(sampler: Stepper, tilt: Predict | None) -> None:
    if tilt is not None and not sampler.has_variance:
        raise ValueError("tilt needs a sampler whose steps are Gaussians, such as ddpm")


def _step(
    sampler: Stepper, predict: Predict, run: Run, tilt: Predict | None, after: After | None
) -> Callable[[tuple[Any, jax.Array | None], jax.Array], tuple[Any, jax.Array | None]]:
    """The function from (solver's state, frames) and i to the same after step i."""
    x = run.state.x

    def draw(k: jax.Array) -> jax.Array:
        if run.noise is not None:
            return run.noise[k]
        return jax.vmap(lambda key: standard_normal(jax.random.fold_in(key, k), x.shape[1:], x.dtype))(run.keys)

    def step(carry: tuple[Any, jax.Array | None], i: jax.Array) -> tuple[Any, jax.Array | None]:
        state, frames = carry
        state = sampler.step(state, i, predict, draw, tilt)
        if after is not None:
            state = state._replace(x=after(state.x, i).astype(x.dtype))
        if frames is not None:
            frames = frames.at[run.slots[i]].set(state.x, mode="drop")
        return state, frames

    return step


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
    sampler: Stepper, keys: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32
) -> jax.Array:
    """x_T [B, *shape], image i from keys[i] alone. The fold keeps it apart from the noise of the steps."""
    start = jax.vmap(lambda key: standard_normal(jax.random.fold_in(key, 2**31 - 1), shape, dtype))(keys)
    return sampler.init_noise_sigma * start
