"""The grid of a solver: the points that it visits, and how the network is called at each of them.

A solver's formula needs nothing else. The state at point i is x = alpha_i x_0 + sigma_i noise; y = x / alpha is the
same state in the units of Karras et al. 2022, x_0 + ratio noise, where the probability-flow ODE reads
dy / d ratio = (y - x_0) / ratio (eq. 1) whatever alpha does.
"""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from diffusion_jax.diffusion import preconditioning
from diffusion_jax.diffusion import prediction as predictions
from diffusion_jax.diffusion.continuous import ContinuousProcess
from diffusion_jax.diffusion.process import DiscreteProcess, Process
from diffusion_jax.diffusion.samplers import core, spacing

_S = TypeVar("_S")


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
    """N points at which the network is called, and the point after the last, where sampling ends.

    Attributes:
      alpha, sigma: of the state, float64 [N + 1]; sigma decreases, unless a published schedule has it otherwise.
      timesteps, input_scale, on_x, on_output: x_0 = on_x x + on_output network(input_scale x, timestep), float64 [N];
        one more if the network can be called at the end as well.
      init_noise_sigma: standard deviation of x_T, for images of unit variance unless the solver's authors differ.
    """

    alpha: np.ndarray
    sigma: np.ndarray
    timesteps: np.ndarray
    input_scale: np.ndarray
    on_x: np.ndarray
    on_output: np.ndarray
    init_noise_sigma: float

    @property
    def num_steps(self) -> int:
        return len(self.sigma) - 1

    @property
    def ratios(self) -> np.ndarray:
        """sigma / alpha [N + 1]. Raises ValueError where alpha is 0, for solvers that need it to be finite."""
        if not self.alpha[0]:
            raise ValueError("this solver needs some signal at its first point; give sigma_max, or a later first time")
        return self.sigma / self.alpha

    @property
    def log_snr_half(self) -> np.ndarray:
        """lambda = log(alpha / sigma) [N + 1] of Lu et al. 2022; -inf and inf where there is no signal or no noise."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    def noise_estimate(self, i: int) -> tuple[float, float]:
        """(on x, on x_0) that turn an estimate of x_0 at point i into one of the noise."""
        return 1 / self.sigma[i], -self.alpha[i] / self.sigma[i]

    def after(self, num_points: int) -> Grid:
        """The grid without its first points, for solvers that begin in the middle (image-to-image)."""
        if not num_points:
            return self
        columns = ("alpha", "sigma", "timesteps", "input_scale", "on_x", "on_output")
        return dataclasses.replace(self, **{name: getattr(self, name)[num_points:] for name in columns})

    def row(
        self,
        i: int,
        *,
        step: int | None = None,
        x: float = 0.0,
        history: Sequence[float] = (),
        anchor: float = 0.0,
        noise: float = 0.0,
        estimate: tuple[float, float] = (0.0, 1.0),
        anchor_x: float = 0.0,
        anchor_anchor: float = 1.0,
        anchor_history: Sequence[float] = (),
    ) -> core.Row:
        """A table row that calls the network at point i; the other arguments are those of `core.Row`."""
        return core.Row(
            timestep=self.timesteps[i],
            step=i if step is None else step,
            input_scale=self.input_scale[i],
            denoise=(self.on_x[i], self.on_output[i]),
            level=(self.alpha[i], self.sigma[i]),
            x=x,
            history=history,
            anchor=anchor,
            noise=noise,
            estimate=estimate,
            anchor_x=anchor_x,
            anchor_anchor=anchor_anchor,
            anchor_history=anchor_history,
        )


def assemble(
    prediction: str,
    times: np.ndarray,
    alpha: np.ndarray,
    sigma: np.ndarray,
    *,
    end: tuple[float, float] | None = (1.0, 0.0),
    rescaled: bool = False,
    init_noise_sigma: float | None = None,
    ordered: bool = True,
) -> Grid:
    """A grid from the network's own process.

    Args:
      prediction: as in `predictions.interface`.
      times, alpha, sigma: float64 [N], of the network's process at the points.
      end: (alpha, sigma) where sampling ends; None if the last of the points is the end.
      rescaled: keep the state as y = x / alpha, as k-diffusion and some of diffusers' solvers do. Solvers give the same
        images either way.
      init_noise_sigma: None for hypot(alpha, sigma) at the first point.
      ordered: raise ValueError for noise levels that increase; a published schedule may have some that do.
    """
    call = predictions.interface(prediction, times, alpha, sigma)
    scale = 1 / alpha if rescaled else np.ones_like(alpha)
    state_alpha, state_sigma = alpha * scale, sigma * scale
    if end is not None:
        end_scale = 1 / end[0] if rescaled else 1.0
        state_alpha, state_sigma = (
            np.append(state_alpha, end[0] * end_scale),
            np.append(state_sigma, end[1] * end_scale),
        )
    if ordered and (np.diff(state_sigma / np.maximum(state_alpha, 1e-300)) > 0).any():
        raise ValueError("the noise levels of a sampler must not increase")
    return Grid(
        alpha=state_alpha,
        sigma=state_sigma,
        timesteps=np.asarray(call.timestep, np.float64),
        input_scale=call.input_scale / scale,
        on_x=call.on_x / scale,
        on_output=call.on_output + np.zeros_like(alpha),
        init_noise_sigma=float(
            np.hypot(state_alpha[0], state_sigma[0]) if init_noise_sigma is None else init_noise_sigma
        ),
    )


@dataclasses.dataclass(frozen=True)
class Points:
    """Where a solver calls the network: what the options of the solvers on a grid have in common.

    Attributes:
      spacing_rule: a rule for timesteps, for times or for noise levels (`spacing`, `continuous.TIME_RULES`); None is
        the process's own.
      offset: added to the timesteps of a chain.
      rho: the exponent of the Karras rule.
      sigma_min, sigma_max: the range of the rules for noise levels; None is the process's own.
      denoise_to_zero: the last step goes from the rule's last point to the clean image. False: it ends at that point.
    """

    spacing_rule: str | None = None
    offset: int = 0
    rho: float = 7.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    denoise_to_zero: bool = True

    def on(self, process: Process, prediction: str, num_steps: int) -> Grid:
        """The grid of `num_steps` points on the process, and with the prediction, that the network was trained for."""
        rule = self.spacing_rule or process.spacing_rule
        num_points = num_steps if self.denoise_to_zero else num_steps + 1
        if rule in spacing.RATIO_RULES:
            low, high = process.ratio_range()
            ratios = spacing.ratios(rule, self.sigma_min or low, self.sigma_max or high, num_points, self.rho)
            ratios = np.asarray(preconditioning.nearest_trained(prediction, ratios))
            times, alpha = process.time_of(ratios), process.alpha_at(ratios)
            sigma = ratios * alpha
        else:
            if self.sigma_min is not None or self.sigma_max is not None:
                known = ", ".join(spacing.RATIO_RULES)
                raise ValueError(f"spacing_rule is {rule!r}; sigma_min and sigma_max need one of {known}")
            times = _times(process, rule, num_points, self.offset)
            alpha, sigma = process.alpha(times), process.sigma(times)
            times = times.astype(np.float64)
        return assemble(prediction, times, alpha, sigma, end=(1.0, 0.0) if self.denoise_to_zero else None)


def on_points(num_steps: int = 50, **defaults: Any) -> Callable[[Callable[..., _S]], Callable[..., _S]]:
    """A decorator that makes a constructor of a solver on a grid, solver(points, ...) with options of its own.

    The constructor's arguments are process, prediction and num_steps; then by name the fields of `Points`, and the
    solver's own. defaults: of fields of `Points`, where they are others.
    """
    fields = {field.name: defaults.get(field.name, field.default) for field in dataclasses.fields(Points)}

    def construct(solver: Callable[..., _S]) -> Callable[..., _S]:
        own = list(inspect.signature(solver).parameters.values())[1:]
        kinds = typing.get_type_hints(solver)
        del kinds[next(iter(kinds))]
        given = {"process": Process, "prediction": str, "num_steps": int}
        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in given]
        parameters[-1] = parameters[-1].replace(default=num_steps)
        parameters += [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default) for name, default in fields.items()
        ]
        parameters += [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        signature = inspect.Signature(parameters)

        def constructor(*positional: Any, **named: Any) -> _S:
            bound = signature.bind(*positional, **named)
            bound.apply_defaults()
            values = bound.arguments
            points = Points(**{name: values[name] for name in fields})
            grid = points.on(values["process"], values["prediction"], values["num_steps"])
            return solver(grid, **{parameter.name: values[parameter.name] for parameter in own})

        constructor.__name__ = constructor.__qualname__ = solver.__name__
        constructor.__module__, constructor.__doc__ = solver.__module__, solver.__doc__
        constructor.__annotations__ = given | typing.get_type_hints(Points) | kinds
        constructor.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
        return constructor

    return construct


def _times(process: Process, rule: str, num_points: int, offset: int) -> np.ndarray:
    if isinstance(process, DiscreteProcess):
        return spacing.timesteps(rule, process.num_timesteps, num_points, offset)
    if isinstance(process, ContinuousProcess):
        return process.sampling_times(rule, num_points, offset)
    raise ValueError(f"no rule places times on a {type(process).__name__}")
