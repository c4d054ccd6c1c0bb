"""The probability-flow ODE by an adaptive Runge-Kutta method, which chooses its own steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.continuous import ContinuousProcess
from diffusion_jax.diffusion.process import Process
from diffusion_jax.diffusion.samplers import core, spacing
from diffusion_jax.options import described


@dataclasses.dataclass(frozen=True)
class AdaptiveSampler:
    """Dormand-Prince 5(4) from the process's noisiest time to its last, then one estimate of x_0.

    It is run by `core.sample` like the samplers that are tables. The step size follows from the error of the whole
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

    def solve(
        self, predict: core.Predict, x_T: jax.Array, return_trajectory: bool = True, trajectory_stride: int = 1
    ) -> tuple[jax.Array, jax.Array | None]:
        """As `core.sample`."""
        x, states, _ = self.solve_counting(predict, x_T)
        if not return_trajectory:
            return x, None
        return x, states[core.frames_kept(self.num_steps, trajectory_stride)]

    def solve_counting(self, predict: core.Predict, x_T: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(x, states [1 + num_steps, B, ...], number of network evaluations)."""
        import diffrax  # only this solver needs it

        def estimate(t: jax.Array, x: jax.Array) -> jax.Array:
            call = predictions.interface(self.prediction, t, self.process.alpha(t), self.process.sigma(t))
            return call.on_x * x + call.on_output * predict(call.input_scale * x, call.timestep).astype(x.dtype)

        def velocity(t: Any, x: jax.Array, _: Any) -> jax.Array:
            """dx/dt = sigma'/sigma x + (alpha' - alpha sigma'/sigma) x_0, from x = alpha x_0 + sigma noise."""
            t = jnp.asarray(t, x.dtype)
            alpha, d_alpha = jax.jvp(self.process.alpha, (t,), (jnp.ones_like(t),))
            sigma, d_sigma = jax.jvp(self.process.sigma, (t,), (jnp.ones_like(t),))
            relative = d_sigma / sigma
            return relative * x + (d_alpha - alpha * relative) * estimate(t, x)

        times = jnp.asarray(self.times, x_T.dtype)
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(velocity),
            diffrax.Dopri5(),
            t0=times[0],
            t1=times[-1],
            dt0=None,
            y0=x_T,
            saveat=diffrax.SaveAt(ts=times),
            stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
            max_steps=self.max_steps,
            throw=False,
        )
        assert solution.ys is not None
        states = solution.ys
        # Six evaluations a step (the seventh is the next step's first), two to choose the first step.
        evaluations = 6 * solution.stats["num_steps"] + 2
        if self.denoise_to_zero:
            states = states.at[-1].set(estimate(times[-1], states[-1]))
            evaluations = evaluations + 1
        return states[-1], states, evaluations


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
