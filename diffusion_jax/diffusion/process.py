"""Forward processes q(x_t | x_0) = N(alpha_t x_0, sigma_t^2 I) and their noise schedules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.diffusion.arrays import Number, bcast, namespace, noised
from diffusion_jax.diffusion.continuous import EDM, VESDE, VPSDE, RectifiedFlow, SubVPSDE
from diffusion_jax.options import check_least, described


class Process(Protocol):
    """What the rest of the code may ask of a forward process; t has any shape, the answer has the shape of t."""

    # How a sampler places its times unless told otherwise.
    spacing_rule: ClassVar[str]

    def alpha(self, t: Number) -> Number: ...

    def sigma(self, t: Number) -> Number: ...

    def log_snr(self, t: Number) -> Number: ...

    def time_at(self, u: jax.Array) -> jax.Array:
        """The time at quantile u in [0, 1) of the training distribution; 0 is the clean end."""
        ...

    def add_noise(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array: ...

    # What samplers ask besides, in float64 NumPy; a ratio is sigma_t / alpha_t, the noise level of Karras et al. 2022.

    def alpha_at(self, ratio: Number) -> Number:
        """alpha_t where the noise-to-signal ratio is `ratio`."""
        ...

    def time_of(self, ratio: Number) -> Number:
        """The time at which the noise-to-signal ratio is `ratio`."""
        ...

    def ratio_range(self) -> tuple[float, float]:
        """The smallest and the largest ratio at which sampling calls the network."""
        ...


def perturb(process: Process, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
    """x_t = alpha_t x_0 + sigma_t noise, for x0 and noise [B, ...] and t [B] or a scalar."""
    return noised(x0, noise, bcast(process.alpha(t), x0), bcast(process.sigma(t), x0))


# --- Beta schedules: float64 [num_timesteps]. -------------------------------------------------------------------


def linear_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Ho et al. 2020, section 4."""
    return np.linspace(beta_start, beta_end, num_timesteps, dtype=np.float64)


def scaled_linear_betas(num_timesteps: int, beta_start: float = 0.00085, beta_end: float = 0.012) -> np.ndarray:
    """Linear in sqrt(beta): the schedule of latent diffusion and Stable Diffusion (Rombach et al. 2022)."""
    return np.linspace(np.sqrt(beta_start), np.sqrt(beta_end), num_timesteps, dtype=np.float64) ** 2


def betas_from_alpha_bar(
    alpha_bar: Callable[[np.ndarray], np.ndarray], num_timesteps: int, max_beta: float
) -> np.ndarray:
    """beta_t = 1 - alpha_bar((t+1)/T) / alpha_bar(t/T), clipped at max_beta."""
    edges = alpha_bar(np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps)
    return np.minimum(1 - edges[1:] / edges[:-1], max_beta)


def cosine_betas(num_timesteps: int, offset: float = 0.008, max_beta: float = 0.999) -> np.ndarray:
    """Nichol and Dhariwal 2021, eq. 17; `squaredcos_cap_v2` in diffusers."""
    return betas_from_alpha_bar(lambda u: np.cos((u + offset) / (1 + offset) * np.pi / 2) ** 2, num_timesteps, max_beta)


def sigmoid_betas(num_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> np.ndarray:
    """Betas on a logistic curve over [-6, 6] (GeoDiff, Xu et al. 2022)."""
    return beta_start + (beta_end - beta_start) / (1 + np.exp(-np.linspace(-6, 6, num_timesteps, dtype=np.float64)))


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alphas_cumprod) so that its last entry is exactly 0 (Lin et al. 2024, algorithm 1)."""
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas_cumprod = root**2
    return 1 - np.concatenate([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


# --- Processes. -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class DiscreteProcess:
    """A variance-preserving Markov chain with T steps, t in 0 .. T-1 (Ho et al. 2020, eq. 2-4).

    betas: float64 [T], each in (0, 1]. Tables stay in float64 NumPy and are cast where they meet an array.
    """

    betas: np.ndarray
    # How a sampler places its timesteps unless told otherwise.
    spacing_rule: ClassVar[str] = "trailing"

    def __post_init__(self) -> None:
        if self.betas.ndim != 1 or not len(self.betas):
            raise ValueError(f"betas must be a vector with at least one entry, got shape {self.betas.shape}")
        if not ((self.betas > 0) & (self.betas <= 1)).all():
            low, high = self.betas.min(), self.betas.max()
            raise ValueError(f"every beta must be in (0, 1], got values from {low:g} to {high:g}")

    @property
    def num_timesteps(self) -> int:
        return len(self.betas)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        return np.cumprod(1 - self.betas)

    @property
    def ratios(self) -> np.ndarray:
        """The noise-to-signal ratios sigma_t / alpha_t, float64 [T]; infinite where alpha_t is 0."""
        with np.errstate(divide="ignore"):
            return np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)

    def alpha(self, t: Number) -> Number:
        return namespace(t).asarray(np.sqrt(self.alphas_cumprod))[t]

    def sigma(self, t: Number) -> Number:
        return namespace(t).asarray(np.sqrt(1 - self.alphas_cumprod))[t]

    def log_snr(self, t: Number) -> Number:
        """log(alpha_t^2 / sigma_t^2); -inf where alpha_t is 0."""
        with np.errstate(divide="ignore"):
            return namespace(t).asarray(np.log(self.alphas_cumprod) - np.log1p(-self.alphas_cumprod))[t]

    def time_at(self, u: jax.Array) -> jax.Array:
        return jnp.minimum((u * self.num_timesteps).astype(jnp.int32), self.num_timesteps - 1)

    def add_noise(self, x0: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        return perturb(self, x0, noise, t)

    def alpha_at(self, ratio: Number) -> Number:
        return 1 / namespace(ratio).sqrt(1 + ratio**2)

    def time_of(self, ratio: Number) -> Number:
        """The fractional timestep, by linear interpolation of log ratio; 0 or T - 1 outside of the chain's range."""
        xp = namespace(ratio)
        return xp.interp(xp.log(ratio), xp.asarray(np.log(self.ratios)), xp.arange(self.num_timesteps))

    def ratio_range(self) -> tuple[float, float]:
        return float(self.ratios[0]), float(self.ratios[-1])


BETA_SCHEDULES: dict[str, Callable[..., np.ndarray]] = {
    "linear": linear_betas,
    "scaled_linear": scaled_linear_betas,
    "cosine": cosine_betas,
    "sigmoid": sigmoid_betas,
}


# What the options of chains mean.
_CHAIN = {
    "num_timesteps": "steps of the chain in training",
    "zero_terminal_snr": "rescaled so that nothing of the image is left at the last step (Lin et al. 2024)",
}
_BETAS = {"beta_start": "variance of the first step's noise", "beta_end": "variance of the last step's noise"}


def _discrete(betas: np.ndarray, zero_terminal_snr: bool) -> DiscreteProcess:
    return DiscreteProcess(rescale_zero_terminal_snr(betas) if zero_terminal_snr else betas)


@described(
    _CHAIN,
    _BETAS,
)
def linear(
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
) -> DiscreteProcess:
    """The chain of Ho et al. 2020."""
    check_least(1, num_timesteps=num_timesteps)
    return _discrete(linear_betas(num_timesteps, beta_start, beta_end), zero_terminal_snr)


@described(
    _CHAIN,
    _BETAS,
)
def scaled_linear(
    num_timesteps: int = 1000,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    zero_terminal_snr: bool = False,
) -> DiscreteProcess:
    """The chain of Stable Diffusion."""
    check_least(1, num_timesteps=num_timesteps)
    return _discrete(scaled_linear_betas(num_timesteps, beta_start, beta_end), zero_terminal_snr)


@described(
    _CHAIN,
    offset="keeps the first steps from being too small; 0.008 in the paper",
    max_beta="largest variance of a step's noise",
)
def cosine(
    num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999, zero_terminal_snr: bool = False
) -> DiscreteProcess:
    """The chain of Nichol and Dhariwal 2021."""
    check_least(1, num_timesteps=num_timesteps)
    return _discrete(cosine_betas(num_timesteps, offset, max_beta), zero_terminal_snr)


@described(
    _CHAIN,
    _BETAS,
)
def sigmoid(
    num_timesteps: int = 1000,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    zero_terminal_snr: bool = False,
) -> DiscreteProcess:
    """The chain with logistic betas."""
    check_least(1, num_timesteps=num_timesteps)
    return _discrete(sigmoid_betas(num_timesteps, beta_start, beta_end), zero_terminal_snr)


# A config's `process.name` picks one of these; the other fields of the section are its arguments.
PROCESSES: dict[str, Callable[..., Process]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
    "vp_sde": VPSDE,
    "sub_vp_sde": SubVPSDE,
    "ve_sde": VESDE,
    "edm": EDM,
    "rectified_flow": RectifiedFlow,
}
