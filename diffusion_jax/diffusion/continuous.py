"""Forward processes in continuous time: the SDEs of Song et al. 2021, EDM's noise levels and rectified flow.

Every one answers the questions of `process.Process`. Time is what the network is told. The papers' unit interval is
stretched by `time_scale`, because sinusoidal embeddings are made for times up to about 1000; set it to 1 for networks
that are told t itself. A noise-to-signal ratio is sigma_t / alpha_t, which Karras et al. 2022 call sigma.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion import preconditioning
from diffusion_jax.diffusion.arrays import Number, bcast, namespace, noised
from diffusion_jax.options import described

TIME_RULES = ("linspace", "trailing")


class ContinuousProcess(abc.ABC):
    """What the processes below share; each gives alpha and sigma, their inverses, and the range of its times."""

    # How a sampler places its times unless told otherwise.
    spacing_rule: ClassVar[str] = "linspace"

    @property
    @abc.abstractmethod
    def t_max(self) -> float:
        """The noisiest time."""

    @property
    @abc.abstractmethod
    def t_end(self) -> float:
        """The last time at which sampling calls the network; what follows is one step to the clean image."""

    @abc.abstractmethod
    def alpha(self, t: Number) -> Number: ...

    @abc.abstractmethod
    def sigma(self, t: Number) -> Number: ...

    @abc.abstractmethod
    def alpha_at(self, ratio: Number) -> Number:
        """alpha_t where the noise-to-signal ratio is `ratio`."""

    @abc.abstractmethod
    def time_of(self, ratio: Number) -> Number:
        """The time t at which the noise-to-signal ratio is `ratio`."""

    @abc.abstractmethod
    def time_at(self, u: jax.Array) -> jax.Array:
        """The time at quantile u in [0, 1) of the training distribution."""

    def log_snr(self, t: Number) -> Number:
        """log(alpha_t^2 / sigma_t^2)."""
        xp = namespace(t)
        return 2 * (xp.log(self.alpha(t)) - xp.log(self.sigma(t)))

    def add_noise(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        return noised(x0, noise, bcast(self.alpha(t), x0), bcast(self.sigma(t), x0))

    def ratio_range(self) -> tuple[float, float]:
        """The noise-to-signal ratios at t_end and t_max; the second is infinite where no signal is left."""
        t = np.array([self.t_end, self.t_max])
        with np.errstate(divide="ignore"):
            low, high = self.sigma(t) / self.alpha(t)
        return float(low), float(high)

    def sampling_times(self, rule: str, num_points: int, offset: int = 0) -> np.ndarray:
        """Decreasing times, float64 [num_points].

        linspace: equal steps from t_max to t_end, both included; trailing: the upper ends of equal intervals.
        """
        if offset:
            raise ValueError(f"offset is {offset}; it can only be 0 for a process in continuous time")
        if rule == "linspace":
            return np.linspace(self.t_max, self.t_end, num_points)
        if rule == "trailing":
            return self.t_max * np.arange(num_points, 0, -1) / num_points
        raise ValueError(f"spacing_rule is {rule!r}; in continuous time it can be {', '.join(TIME_RULES)}")


@described(
    beta_min="rate of the noise at the clean end",
    beta_max="rate of the noise at the noisy end",
    t_min="smallest time that training draws, in the unit interval",
    t_stop="time at which sampling ends, in the unit interval",
    time_scale="time as the network is told of it, in units of the unit interval",
)
@dataclasses.dataclass(frozen=True)
class VPSDE(ContinuousProcess):
    """dx = -beta(t)/2 x dt + sqrt(beta(t)) dw with beta linear in t (Song et al. 2021, eq. 11, 32 and 33).

    Training draws t from [t_min, 1], sampling stops at t_stop (appendix C); both in the paper's unit interval.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-5
    t_stop: float = 1e-3
    time_scale: float = 999.0

    def __post_init__(self) -> None:
        _check_order(beta_min=self.beta_min, beta_max=self.beta_max)
        _check_order(t_min=self.t_min, **{"the end": 1.0})
        _check_order(t_stop=self.t_stop, **{"the end": 1.0})
        _check_order(time_scale=self.time_scale)

    @property
    def t_max(self) -> float:
        return self.time_scale

    @property
    def t_end(self) -> float:
        return self.t_stop * self.time_scale

    def _ratio(self, t: Number) -> Number:
        return preconditioning.vp_sigma(t / self.time_scale, self.beta_max - self.beta_min, self.beta_min)

    def alpha(self, t: Number) -> Number:
        return self.alpha_at(self._ratio(t))

    def sigma(self, t: Number) -> Number:
        ratio = self._ratio(t)
        return ratio * self.alpha_at(ratio)

    def alpha_at(self, ratio: Number) -> Number:
        return 1 / namespace(ratio).sqrt(1 + ratio**2)

    def time_of(self, ratio: Number) -> Number:
        return self.time_scale * preconditioning.vp_time(ratio, self.beta_max - self.beta_min, self.beta_min)

    def time_at(self, u: jax.Array) -> jax.Array:
        return self.time_scale * (self.t_min + (1 - self.t_min) * u)


@dataclasses.dataclass(frozen=True)
class SubVPSDE(VPSDE):
    """The SDE with VP's alpha and a smaller variance: sigma = 1 - alpha^2 (Song et al. 2021, eq. 14 and 29)."""

    def alpha(self, t: Number) -> Number:
        return VPSDE.alpha_at(self, self._ratio(t))

    def sigma(self, t: Number) -> Number:
        # 1 - alpha^2 = r^2 / (1 + r^2) with VP's ratio r, without the cancellation at small t.
        ratio = self._ratio(t)
        return ratio**2 / (1 + ratio**2)

    def alpha_at(self, ratio: Number) -> Number:
        # The positive root of alpha^2 + ratio alpha = 1.
        return 2 / (ratio + namespace(ratio).sqrt(ratio**2 + 4))

    def time_of(self, ratio: Number) -> Number:
        return VPSDE.time_of(self, namespace(ratio).sqrt(ratio / self.alpha_at(ratio)))


@described(
    sigma_min="smallest noise level",
    sigma_max="largest noise level",
    t_min="smallest time of training and of sampling, in the unit interval",
    time_scale="time as the network is told of it, in units of the unit interval",
)
@dataclasses.dataclass(frozen=True)
class VESDE(ContinuousProcess):
    """dx = sqrt(d sigma^2(t)/dt) dw with sigma geometric from sigma_min to sigma_max (Song et al. 2021, eq. 30)."""

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    time_scale: float = 999.0

    def __post_init__(self) -> None:
        _check_order(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        _check_order(t_min=self.t_min, **{"the end": 1.0})
        _check_order(time_scale=self.time_scale)

    @property
    def t_max(self) -> float:
        return self.time_scale

    @property
    def t_end(self) -> float:
        return self.t_min * self.time_scale

    def alpha(self, t: Number) -> Number:
        return namespace(t).ones_like(t)

    def sigma(self, t: Number) -> Number:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** (t / self.time_scale)

    def alpha_at(self, ratio: Number) -> Number:
        return namespace(ratio).ones_like(ratio)

    def time_of(self, ratio: Number) -> Number:
        xp = namespace(ratio)
        return self.time_scale * xp.log(ratio / self.sigma_min) / np.log(self.sigma_max / self.sigma_min)

    def time_at(self, u: jax.Array) -> jax.Array:
        return self.time_scale * (self.t_min + (1 - self.t_min) * u)


@described(
    sigma_min="smallest noise level of sampling",
    sigma_max="largest noise level of sampling",
    log_mean="mean of the logarithm of training's noise levels",
    log_std="standard deviation of the logarithm of training's noise levels",
)
@dataclasses.dataclass(frozen=True)
class EDM(ContinuousProcess):
    """x_0 + t noise: time is the noise level, log-normal in training (Karras et al. 2022, table 1)."""

    spacing_rule: ClassVar[str] = "karras"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    log_mean: float = -1.2
    log_std: float = 1.2

    def __post_init__(self) -> None:
        _check_order(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        _check_order(log_std=self.log_std)

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def t_end(self) -> float:
        return self.sigma_min

    def alpha(self, t: Number) -> Number:
        return namespace(t).ones_like(t)

    def sigma(self, t: Number) -> Number:
        return t

    def alpha_at(self, ratio: Number) -> Number:
        return namespace(ratio).ones_like(ratio)

    def time_of(self, ratio: Number) -> Number:
        return ratio

    def time_at(self, u: jax.Array) -> jax.Array:
        return jnp.exp(self.log_mean + self.log_std * _normal_quantile(u))


@described(
    shift="moves the times of training and sampling towards the noise; 1: not at all",
    logit_mean="mean of the logit of training's times, where logit_std is above 0",
    logit_std="standard deviation of the logit of training's times; 0: times are drawn uniformly",
    t_start="time at which sampling begins and training ends; 1 is nothing but noise",
    t_stop="time at which sampling ends, in the unit interval",
    time_scale="time as the network is told of it, in units of the unit interval",
)
@dataclasses.dataclass(frozen=True)
class RectifiedFlow(ContinuousProcess):
    """The straight path (1 - t) x_0 + t noise (Liu et al. 2023; Lipman et al. 2023).

    Training draws t uniformly, or from a logit-normal distribution if logit_std > 0 (Esser et al. 2024, eq. 19). shift
    moves the times of training and of sampling towards the noise, t -> shift t / (1 + (shift - 1) t) (eq. 23). Both
    leave the times above t_start out: 0.999 in rectified flow's released code, whose first state is noise all the same.
    """

    spacing_rule: ClassVar[str] = "trailing"
    shift: float = 1.0
    logit_mean: float = 0.0
    logit_std: float = 0.0
    t_start: float = 1.0
    t_stop: float = 1e-3
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        _check_order(shift=self.shift)
        _check_order(t_stop=self.t_stop, t_start=self.t_start)
        if self.t_start > 1:
            raise ValueError(f"t_start is {self.t_start}; it must be at most 1, where nothing but noise is left")
        _check_order(time_scale=self.time_scale)
        if not self.logit_std >= 0:
            raise ValueError(f"logit_std is {self.logit_std}; it must be at least 0")

    @property
    def t_max(self) -> float:
        return self.t_start * self.time_scale

    @property
    def t_end(self) -> float:
        return self.t_stop * self.time_scale

    def alpha(self, t: Number) -> Number:
        return 1 - t / self.time_scale

    def sigma(self, t: Number) -> Number:
        return t / self.time_scale

    def alpha_at(self, ratio: Number) -> Number:
        return 1 / (1 + ratio)

    def time_of(self, ratio: Number) -> Number:
        return self.time_scale * ratio / (1 + ratio)

    def time_at(self, u: jax.Array) -> jax.Array:
        t = jax.nn.sigmoid(self.logit_mean + self.logit_std * _normal_quantile(u)) if self.logit_std else u
        return self._shifted(self.t_start * t) * self.time_scale

    def sampling_times(self, rule: str, num_points: int, offset: int = 0) -> np.ndarray:
        return self._shifted(super().sampling_times(rule, num_points, offset) / self.time_scale) * self.time_scale

    def _shifted(self, t: Number) -> Number:
        return self.shift * t / (1 + (self.shift - 1) * t)


def _check_order(**values: float) -> None:
    """Raises ValueError, with names and values, unless 0 < the first < the second < ..."""
    given = list(values.values())
    if not all(low < high for low, high in itertools.pairwise([0.0, *given])):
        got = " and ".join(f"{name} is {value:g}" for name, value in values.items())
        raise ValueError(f"{got}; it must be 0 < {' < '.join(values)}")


def _normal_quantile(u: jax.Array) -> jax.Array:
    """The standard normal's quantile function, kept finite where float32 rounds u to 0 or 1."""
    return jax.scipy.special.ndtri(jnp.clip(u, 1e-7, 1 - 1e-7))
