"""What a network's raw output means, and how to get from one meaning to another.

With x = alpha x_0 + sigma noise, every prediction is linear in x and in the output, so a single pair of coefficients
says all: denoised = x_coefficient * x + output_coefficient * output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from diffusion_jax.diffusion.arrays import Number
from diffusion_jax.diffusion.preconditioning import PRECONDITIONINGS

# NumPy float64, Python floats and JAX arrays all pass through these formulas unchanged.
Coefficients = tuple[Number, Number]


def _epsilon(alpha: Number, sigma: Number) -> Coefficients:
    return 1 / alpha, -sigma / alpha


def _sample(alpha: Number, sigma: Number) -> Coefficients:
    return 0 * alpha, 1 + 0 * sigma


def _v(alpha: Number, sigma: Number) -> Coefficients:
    norm = alpha**2 + sigma**2
    return alpha / norm, -sigma / norm


def _score(alpha: Number, sigma: Number) -> Coefficients:
    return 1 / alpha, sigma**2 / alpha


def _velocity(alpha: Number, sigma: Number) -> Coefficients:
    return 1 / (alpha + sigma), -sigma / (alpha + sigma)


_COEFFICIENTS: dict[str, Callable[[Number, Number], Coefficients]] = {
    "epsilon": _epsilon,
    "sample": _sample,
    "v": _v,
    "score": _score,
    "velocity": _velocity,
}

_TARGETS: dict[str, Callable[[Number, Number, Number, Number], Number]] = {
    "epsilon": lambda x0, noise, alpha, sigma: noise,
    "sample": lambda x0, noise, alpha, sigma: x0,
    "v": lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
    "score": lambda x0, noise, alpha, sigma: -noise / sigma,
    "velocity": lambda x0, noise, alpha, sigma: noise - x0,
}

PREDICTIONS = tuple(_COEFFICIENTS)


def denoised_coefficients(prediction: str, alpha: Number, sigma: Number) -> Coefficients:
    """(x_coefficient, output_coefficient) with denoised = x_coefficient x + output_coefficient output.

    prediction:
      epsilon   the noise (Ho et al. 2020, eq. 15)
      sample    x_0
      v         alpha noise - sigma x_0 (Salimans and Ho 2022, section 4)
      score     -noise / sigma (Song et al. 2021)
      velocity  noise - x_0, the straight path's dx/dt (Liu et al. 2023; Lipman et al. 2023)
    alpha = 0 has no answer for epsilon and score: the input then holds no trace of x_0.
    """
    return _COEFFICIENTS[prediction](alpha, sigma)


def to_denoised(prediction: str, output: Number, x: Number, alpha: Number, sigma: Number) -> Number:
    """x_0 as the network sees it, from its raw output at x."""
    on_x, on_output = denoised_coefficients(prediction, alpha, sigma)
    return on_x * x + on_output * output


def from_denoised(prediction: str, denoised: Number, x: Number, alpha: Number, sigma: Number) -> Number:
    """The raw output that stands for `denoised` at x: the inverse of `to_denoised`."""
    return _TARGETS[prediction](denoised, (x - alpha * denoised) / sigma, alpha, sigma)


def target(prediction: str, x0: Number, noise: Number, alpha: Number, sigma: Number) -> Number:
    """What the network is trained to give at x = alpha x0 + sigma noise."""
    return _TARGETS[prediction](x0, noise, alpha, sigma)


def convert(source: str, destination: str, output: Number, x: Number, alpha: Number, sigma: Number) -> Number:
    """The same knowledge about x, expressed as another prediction."""
    return from_denoised(destination, to_denoised(source, output, x, alpha, sigma), x, alpha, sigma)


class Interface(NamedTuple):
    """How a network is called to estimate x_0: on_x x + on_output network(input_scale x, timestep)."""

    input_scale: Number
    timestep: Number
    on_x: Number
    on_output: Number


def interface(prediction: str, t: Number, alpha: Number, sigma: Number) -> Interface:
    """How to call a network at x = alpha x_0 + sigma noise, which is time t of its process.

    prediction: one of PREDICTIONS, for a network that is given x and t; or a preconditioning of Karras et al. 2022
    (`preconditioning.PRECONDITIONINGS`), for a bare network F that is given c_in x / alpha and c_noise.
    Raises ValueError for any other name.
    """
    if prediction in PRECONDITIONINGS:
        c = PRECONDITIONINGS[prediction](sigma / alpha)
        return Interface(c.c_in / alpha, c.c_noise, c.c_skip / alpha, c.c_out)
    if prediction not in _COEFFICIENTS:
        known = ", ".join([*PREDICTIONS, *PRECONDITIONINGS])
        raise ValueError(f"prediction is {prediction!r}; it can be {known}")
    on_x, on_output = denoised_coefficients(prediction, alpha, sigma)
    return Interface(1 + 0 * alpha, t, on_x, on_output)
