"""Where a sampler calls the network: the published rules for timesteps of a chain and for noise levels.

Every rule gives decreasing values: timesteps int64, noise-to-signal ratios (sigma of Karras et al. 2022) float64.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# --- Timesteps of a T-step chain. -------------------------------------------------------------------------------


def leading(num_timesteps: int, num_steps: int) -> np.ndarray:
    """0, s, 2s, ... with stride s = T // S (diffusers' default and LDM's; never reaches T - 1)."""
    return np.arange(num_steps)[::-1] * (num_timesteps // num_steps)


def trailing(num_timesteps: int, num_steps: int) -> np.ndarray:
    """Ends of S equal intervals, T - 1 first (Lin et al. 2024, table 2)."""
    return np.round(np.arange(num_steps, 0, -1) * (num_timesteps / num_steps)).astype(np.int64) - 1


def linspace(num_timesteps: int, num_steps: int) -> np.ndarray:
    """S rounded points from T - 1 to 0, both included."""
    return np.round(np.linspace(0, num_timesteps - 1, num_steps)).astype(np.int64)[::-1]


def quadratic(num_timesteps: int, num_steps: int) -> np.ndarray:
    """floor(linspace(0, sqrt(0.8 T), S)^2): DDIM's rule for CIFAR-10 (Song et al. 2021, appendix D.2)."""
    return (np.linspace(0, np.sqrt(num_timesteps * 0.8), num_steps) ** 2).astype(np.int64)[::-1]


def even(num_timesteps: int, num_steps: int) -> np.ndarray:
    """S points at a fractional stride from 0 to T - 1, both included (Nichol and Dhariwal 2021, section 4).

    The position is accumulated and rounded half to even, as the authors' code does; `linspace` may differ by one.
    """
    stride = (num_timesteps - 1) / (num_steps - 1) if num_steps > 1 else 1.0
    position, visited = 0.0, []
    for _ in range(num_steps):
        visited.append(round(position))
        position += stride
    return np.array(visited, np.int64)[::-1]


def strided(num_timesteps: int, num_steps: int) -> np.ndarray:
    """The smallest integer stride that gives exactly S points from 0 on (OpenAI's DDIM respacing).

    Raises ValueError where there is none.
    """
    for stride in range(1, num_timesteps):
        visited = np.arange(0, num_timesteps, stride)
        if len(visited) == num_steps:
            return visited[::-1]
    raise ValueError(f"no integer stride visits exactly {num_steps} of {num_timesteps} timesteps")


TIMESTEP_RULES: dict[str, Callable[[int, int], np.ndarray]] = {
    "leading": leading,
    "trailing": trailing,
    "linspace": linspace,
    "quadratic": quadratic,
    "even": even,
    "strided": strided,
}


def timesteps(rule: str, num_timesteps: int, num_steps: int, offset: int = 0, repeats: bool = False) -> np.ndarray:
    """The visited timesteps [S], decreasing.

    repeats: a timestep may be visited twice, as the quadratic rule does near 0 from some 30 steps on; the released code
    of DDIM then makes steps that change nothing, and its results count them.
    Raises ValueError where the rule does not exist, or gives repeated or impossible timesteps for this T and S.
    """
    if rule not in TIMESTEP_RULES:
        raise ValueError(f"spacing_rule is {rule!r}; it can be {', '.join(TIMESTEP_RULES)}")
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(
            f"num_steps is {num_steps}; it can be 1 to {num_timesteps}, the number of timesteps of the process"
        )
    visited = TIMESTEP_RULES[rule](num_timesteps, num_steps) + offset
    if visited[0] > num_timesteps - 1 or visited[-1] < 0:
        raise ValueError(
            f"spacing_rule {rule!r} with {num_steps} steps and offset {offset} visits {visited[-1]} to {visited[0]}, "
            f"outside of 0 to {num_timesteps - 1}"
        )
    if not repeats and (np.diff(visited) == 0).any():
        raise ValueError(
            f"spacing_rule {rule!r} visits a timestep twice with {num_steps} of {num_timesteps} steps; take fewer"
        )
    return visited


def respace(num_timesteps: int, sections: str) -> np.ndarray:
    """OpenAI's `timestep_respacing`: "25", "10,15,20" (points in equal sections of the chain) or "ddim25".

    Raises ValueError for anything else, and for more points than a section has timesteps.
    """
    integers = sections.removeprefix("ddim").split(",")
    if not all(count.strip().isdecimal() for count in integers) or (sections.startswith("ddim") and len(integers) > 1):
        raise ValueError(f"respacing is {sections!r}; it can be like '250', '10,15,20' or 'ddim25'")
    counts = [int(count) for count in integers]
    if sections.startswith("ddim"):
        return timesteps("strided", num_timesteps, counts[0])
    size, larger = divmod(num_timesteps, len(counts))
    points, start = [], 0
    for i, count in enumerate(counts):
        length = size + (i < larger)
        points.append(start + timesteps("even", length, count)[::-1])
        start += length
    return np.concatenate(points)[::-1]


def visited(
    num_timesteps: int,
    num_steps: int,
    rule: str,
    offset: int = 0,
    respacing: str | None = None,
    repeats: bool = False,
) -> np.ndarray:
    """The timesteps of a rule, or of OpenAI's notation where that is given instead."""
    if respacing is not None:
        return respace(num_timesteps, respacing)
    return timesteps(rule, num_timesteps, num_steps, offset, repeats)


# --- Noise levels. ----------------------------------------------------------------------------------------------


def karras(low: float, high: float, num_points: int, rho: float = 7.0) -> np.ndarray:
    """Equal steps of ratio^(1/rho) (Karras et al. 2022, eq. 5)."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), num_points) ** rho


def exponential(low: float, high: float, num_points: int, rho: float = 7.0) -> np.ndarray:
    """Equal steps of log SNR, which is -2 log ratio (Lu et al. 2022, section 3.4)."""
    return np.exp(np.linspace(np.log(high), np.log(low), num_points))


def beta(low: float, high: float, num_points: int, rho: float = 7.0) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6), dense at both ends (Lee et al. 2024, "Beta sampling is all you need")."""
    from scipy import stats

    return low + (high - low) * stats.beta.ppf(1 - np.linspace(0, 1, num_points), 0.6, 0.6)


RATIO_RULES: dict[str, Callable[[float, float, int, float], np.ndarray]] = {
    "karras": karras,
    "exponential": exponential,
    "log_snr": exponential,
    "beta": beta,
}


def ratios(rule: str, low: float, high: float, num_points: int, rho: float = 7.0) -> np.ndarray:
    """Noise-to-signal ratios from high down to low, float64 [num_points]. rho: the exponent of the Karras rule.

    Raises ValueError for an impossible range.
    """
    if num_points < 1:
        raise ValueError(f"num_steps is {num_points}; it must be 1 or more")
    if num_points == 1 and 0 < low <= high < np.inf:
        return np.array([high])
    if not 0 < low < high < np.inf:
        raise ValueError(f"spacing_rule {rule!r} needs 0 < sigma_min < sigma_max < inf, got {low:g} and {high:g}")
    values = RATIO_RULES[rule](low, high, num_points, rho)
    values[0], values[-1] = high, low  # exactly, whatever the powers rounded to
    return values
