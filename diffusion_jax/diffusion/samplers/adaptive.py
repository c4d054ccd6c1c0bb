"""The probability-flow ODE by an adaptive Runge-Kutta method, which chooses its own steps."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.continuous import ContinuousProcess
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import core, running, spacing
from diffusion_jax.options import described

_STAGES = 7  # of Dormand and Prince's method
_NEARLY = 1e-6  # how far from the end a step may stop without being drawn out to it


class State(NamedTuple):
    """Attributes: x at the last kept time; y at the solver's own, which is past it.

    start, stop: the step to try, in -t. solver, controller, jumped: their memory. dense, low, high: what the last step
    that was taken says of the times between its ends. tried: steps, taken or not.
    """

    x: jax.Array
    y: jax.Array
    start: jax.Array
    stop: jax.Array
    solver: Any
    controller: Any
    jumped: jax.Array
    dense: Any
    low: jax.Array
    high: jax.Array
    tried: jax.Array


@dataclasses.dataclass(frozen=True)
class AdaptiveSampler:
    """Dormand-Prince 5(4) from the process's noisiest time to its last, then one estimate of x_0.

    The step size follows from the error of the whole
    batch, so an image depends on its neighbours to within the tolerance.

    Attributes:
      process, prediction: what the network was trained for.
      rtol, atol: tolerances of the state.
      num_steps: states kept on the way, not evaluations: these are counted by `solve_counting`.
      denoise_to_zero: end with the estimate of x_0 at the last time, not with the state there.
      max_steps: of the solver; where they do not suffice the result is infinite.
    """

    process: ContinuousProcess
    prediction: str
    rtol: float = 1e-5
    atol: float = 1e-5
    num_steps: int = 20
    denoise_to_zero: bool = True
    max_steps: int = 4096
    stochastic: bool = dataclasses.field(default=False, init=False)
    learned_variance: bool = dataclasses.field(default=False, init=False)
    has_variance: bool = dataclasses.field(default=False, init=False)
    clip: float | None = dataclasses.field(default=None, init=False)

    @property
    def times(self) -> np.ndarray:
        """Where states are kept, float64 [num_steps + 1], the start first."""
        rule, count = self.process.spacing_rule, self.num_steps + 1
        if rule in spacing.RATIO_RULES:
            return np.asarray(self.process.time_of(spacing.ratios(rule, *self.process.ratio_range(), count)))
        return self.process.sampling_times("linspace", count)

    @property
    def timesteps(self) -> np.ndarray:
        """The times before each kept state, [num_steps]."""
        return self.times[:-1]

    @property
    def num_evaluations(self) -> int:
        """Rows of the trajectory, as for the samplers with a table; the solver's own steps are more."""
        return self.num_steps

    @property
    def init_noise_sigma(self) -> float:
        t = np.float64(self.process.t_max)
        return float(np.hypot(self.process.alpha(t), self.process.sigma(t)))

    def init(self, x_T: jax.Array) -> State:
        """See `running.Stepper`. The first step size needs the network, and waits for the first step."""
        empty = jax.eval_shape(lambda x: self._fresh(lambda y, t: y, x), x_T)
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), empty)._replace(x=x_T)

    def step(
        self, state: State, i: jax.Array, predict: core.Predict, draw: core.Draw, tilt: core.Predict | None = None
    ) -> State:
        """Goes on to the next of the times that are kept; there is neither noise nor a tilt."""
        import diffrax  # only this solver needs it

        state = jax.lax.cond(i == 0, lambda: self._fresh(predict, state.x), lambda: state)
        solver, controller, term = self._parts(predict)
        clock = -jnp.asarray(self.times, state.x.dtype)
        end, target = clock[-1], clock[i + 1]

        def runs(now: State) -> jax.Array:
            return (now.start < target) & (now.tried < self.max_steps)

        def one(now: State) -> State:
            tried = now.stop
            found = solver.step(term, now.start, tried, now.y, None, now.solver, now.jumped)
            y, error, dense, after, _ = found
            order = solver.error_order(term)
            kept, start, stop, jumped, control, _ = controller.adapt_step_size(
                now.start, tried, now.y, y, None, error, order, now.controller
            )
            done = (y, after, dense, now.start, tried)
            y, after, dense, low, high = jax.tree.map(
                lambda new, old: jnp.where(kept, new, old), done, (now.y, now.solver, now.dense, now.low, now.high)
            )
            stop = jnp.where(stop > end - _NEARLY, end, stop)
            return State(now.x, y, start, stop, after, control, jumped, dense, low, high, now.tried + 1)

        state = jax.lax.while_loop(runs, one, state)
        curve = diffrax.Dopri5().interpolation_cls(t0=state.low, t1=state.high, **state.dense)
        x = jnp.where(state.start < target, jnp.inf, curve.evaluate(target))
        if self.denoise_to_zero:
            x = jax.lax.cond(i == self.num_steps - 1, lambda: self._estimate(predict, -end, x), lambda: x)
        return state._replace(x=x)

    def solve_counting(self, predict: core.Predict, x_T: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(x, states [1 + num_steps, B, ...], number of network evaluations)."""
        run = running.begin(self, x_T, return_trajectory=True)
        run = running.advance(self, predict, run, self.num_steps)
        assert run.frames is not None
        # Six evaluations a step (the seventh is the next step's first), two to choose the first step.
        return run.state.x, run.frames, 6 * run.state.tried + 2 + self.denoise_to_zero

    def _estimate(self, predict: core.Predict, t: jax.Array, x: jax.Array) -> jax.Array:
        call = predictions.interface(self.prediction, t, self.process.alpha(t), self.process.sigma(t))
        return call.on_x * x + call.on_output * predict(call.input_scale * x, call.timestep).astype(x.dtype)

    def _parts(self, predict: core.Predict) -> tuple[Any, Any, Any]:
        """The method, the rule for its steps, and the ODE in -t, which grows."""
        import diffrax

        def velocity(s: Any, x: jax.Array, _: Any) -> jax.Array:
            """-dx/dt = -(sigma'/sigma x + (alpha' - alpha sigma'/sigma) x_0), from x = alpha x_0 + sigma noise."""
            t = -jnp.asarray(s, x.dtype)
            alpha, d_alpha = jax.jvp(self.process.alpha, (t,), (jnp.ones_like(t),))
            sigma, d_sigma = jax.jvp(self.process.sigma, (t,), (jnp.ones_like(t),))
            relative = d_sigma / sigma
            return -(relative * x + (d_alpha - alpha * relative) * self._estimate(predict, t, x))

        controller = diffrax.PIDController(rtol=self.rtol, atol=self.atol)
        return diffrax.Dopri5(), controller, diffrax.ODETerm(velocity)

    def _fresh(self, predict: core.Predict, x: jax.Array) -> State:
        """Before the first step, whose size follows from the velocity and its change (Hairer et al. 1993, II.4)."""
        solver, controller, term = self._parts(predict)
        start, end = (-jnp.asarray(t, x.dtype) for t in (self.times[0], self.times[-1]))
        stop, control = controller.init(term, start, end, x, None, None, solver.func, solver.error_order(term))
        stop = jnp.where(stop > end - _NEARLY, end, stop)
        begun = solver.init(term, start, stop, x, None)
        dense = {"y0": x, "y1": x, "k": jnp.zeros((_STAGES, *x.shape), x.dtype)}
        return State(x, x, start, stop, begun, control, jnp.array(False), dense, start, stop, jnp.int32(0))


jax.tree_util.register_static(AdaptiveSampler)


@described(
    num_steps="states that are kept for the animation; the tolerances decide the steps",
    rtol="relative tolerance of the error of a step",
    atol="absolute tolerance of the error of a step",
    denoise_to_zero="a last step to no noise at all",
    max_steps="steps after which the solver gives up",
)
def adaptive(
    process: Process,
    prediction: str,
    num_steps: int = 20,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    denoise_to_zero: bool = True,
    max_steps: int = 4096,
) -> AdaptiveSampler:
    """Dormand-Prince 5(4), the "dopri5" and "RK45" of the papers (Song et al. 2021, section 4.3; Lipman et al. 2023).

    num_steps counts the states kept for the trajectory; the tolerances decide how often the network is called. Raises
    ValueError for a process in discrete time, and for tolerances that are negative or both 0.
    """
    if not isinstance(process, ContinuousProcess):
        raise ValueError("the adaptive sampler needs a process in continuous time, such as vp_sde or rectified_flow")
    if not (rtol >= 0 and atol >= 0 and max(rtol, atol) > 0):
        raise ValueError(f"rtol is {rtol} and atol {atol}; neither may be negative, and one must be above 0")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; it must be 1 or more")
    return AdaptiveSampler(process, prediction, rtol, atol, num_steps, denoise_to_zero, max_steps)
