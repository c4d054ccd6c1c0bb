"""Which timesteps of a T-step chain a sampler visits: the published rules, each decreasing, int64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def leading(num_timesteps: int, num_steps: int, offset: int = 0) -> np.ndarray:
    """(0, s, 2s, ...) + offset with stride s = T // S (diffusers' default; never reaches T - 1)."""
    return np.arange(num_steps)[::-1] * (num_timesteps // num_steps) + offset


def trailing(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Ends of S equal intervals, T - 1 first (Lin et al. 2024, table 2)."""
    return np.round(np.arange(num_steps, 0, -1) * (num_timesteps / num_steps)).astype(np.int64) - 1


def linspace(num_timesteps: int, num_steps: int) -> np.ndarray:
    """S rounded points from T - 1 to 0, both included (Nichol and Dhariwal 2021, section 4)."""
    return np.round(np.linspace(0, num_timesteps - 1, num_steps)).astype(np.int64)[::-1]


def quadratic(num_timesteps: int, num_steps: int) -> np.ndarray:
    """floor(linspace(0, sqrt(0.8 T), S)^2): DDIM's rule for CIFAR-10 (Song et al. 2021, appendix D.2)."""
    return (np.linspace(0, np.sqrt(num_timesteps * 0.8), num_steps) ** 2).astype(np.int64)[::-1]


SPACINGS: dict[str, Callable[[int, int], np.ndarray]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
}


def timesteps(spacing: str, num_timesteps: int, num_steps: int, offset: int = 0) -> np.ndarray:
    """The visited timesteps [S], strictly decreasing.

    Raises ValueError where the rule does not exist, or gives repeated or impossible timesteps for this T and S.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"spacing is {spacing!r}; it can be {', '.join(SPACINGS)}")
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(
            f"num_steps is {num_steps}; it can be 1 to {num_timesteps}, the number of timesteps of the process"
        )
    visited = SPACINGS[spacing](num_timesteps, num_steps) + offset
    if visited[0] > num_timesteps - 1 or visited[-1] < 0:
        raise ValueError(
            f"spacing {spacing!r} with {num_steps} steps and offset {offset} visits {visited[-1]} to {visited[0]}, "
            f"outside of 0 to {num_timesteps - 1}"
        )
    if (np.diff(visited) >= 0).any():
        raise ValueError(
            f"spacing {spacing!r} visits a timestep twice with {num_steps} of {num_timesteps} steps; take fewer"
        )
    return visited
