"""Power-function averages of the parameters, and any width of them after the training (Karras et al. 2024, section 3).

A profile is p(t') = (gamma + 1) t'^gamma / t^(gamma + 1) over the updates t' from 0 to t: it reaches back a
fixed share of the training, however long that has been. Its name is sigma_rel, the standard deviation of p in units of
t. A snapshot holds a few tracked profiles; snapshots of several updates span others to good precision (section 3.2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.options import described

# The width of the plain average over the whole training, gamma = 0.
WIDEST = float(np.sqrt(1 / 12))


@dataclasses.dataclass(frozen=True)
class Profile:
    """The average of width `sigma_rel` after update number `step`."""

    step: int
    sigma_rel: float


@described(
    sigma_rels="widths of the averages that are kept, relative to the training's length",
    snapshot_every="updates between snapshots, from which sampling.ema_width is put together; None: none are kept",
)
@dataclasses.dataclass(frozen=True)
class PosthocEMA:
    """What a run keeps for reconstruction: averages of these widths, at every so many updates and at the end.

    snapshot_every None keeps nothing. Raises ValueError for a width that no profile has, or none at all.
    """

    sigma_rels: tuple[float, ...] = (0.05, 0.1)
    snapshot_every: int | None = None

    def __post_init__(self) -> None:
        if not self.sigma_rels or len(set(self.sigma_rels)) < len(self.sigma_rels):
            raise ValueError(f"posthoc_ema.sigma_rels is {self.sigma_rels}; it must name at least one width, each once")
        for sigma_rel in self.sigma_rels:
            check_width("posthoc_ema.sigma_rels", sigma_rel)
        if self.snapshot_every is not None and self.snapshot_every < 1:
            raise ValueError(f"posthoc_ema.snapshot_every is {self.snapshot_every}; it must be at least 1, or None")


def check_width(field: str, sigma_rel: float) -> None:
    """Raises ValueError for a width that no profile with gamma of 0 or more has."""
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(f"{field} is {sigma_rel}; it must be above 0 and at most {WIDEST:.4f}, the plain average's")


def width(gamma: float) -> float:
    """sigma_rel of the exponent gamma (eq. 123)."""
    return float(np.sqrt((gamma + 1) / ((gamma + 2) ** 2 * (gamma + 3))))


def exponent(sigma_rel: float) -> float:
    """gamma of the width sigma_rel, in float64: the largest root of the cubic that eq. 123 becomes (eq. 126)."""
    inverse = float(sigma_rel) ** -2.0
    return float(np.roots([1.0, 7.0, 16.0 - inverse, 12.0 - inverse]).real.max())


def decay(gamma: float, step: jax.Array) -> jax.Array:
    """What the update after `step` others keeps of the old average: (step / (step + 1))^(gamma + 1) (eq. 127).

    0 at the first update. The weight of update i after n of them is then (i^(gamma+1) - (i-1)^(gamma+1)) / n^(gamma+1),
    the integral of the profile over that update.
    """
    n = jnp.asarray(step, jnp.float32)
    # Through the logarithm, so that what is near 1 keeps its distance from it.
    return jnp.exp((gamma + 1) * jnp.log1p(-1 / (n + 1)))


def inner_products(a: Sequence[Profile], b: Sequence[Profile]) -> np.ndarray:
    """The integrals of products of two profiles over time, float64 [len(a), len(b)] (eq. 151)."""
    t_a, t_b = (np.array([float(profile.step) for profile in side]) for side in (a, b))
    g_a, g_b = (np.array([exponent(profile.sigma_rel) for profile in side]) for side in (a, b))
    t_a, g_a = t_a[:, None], g_a[:, None]
    # Up to the earlier of the two ends both are powers, and the product's integral ends there.
    power = np.where(t_a < t_b, g_b, -g_a)
    return (g_a + 1) * (g_b + 1) * (t_a / t_b) ** power / ((g_a + g_b + 1) * np.maximum(t_a, t_b))


def coefficients(tracked: Sequence[Profile], wanted: Profile) -> np.ndarray:
    """Weights of tracked profiles whose sum is closest to the wanted one, float64 [len(tracked)], in total 1.

    The least-squares fit of one function of time by others (algorithm 3): it does not look at parameters.
    """
    weights = np.linalg.solve(inner_products(tracked, tracked), inner_products(tracked, [wanted]))[:, 0]
    return weights / weights.sum()
