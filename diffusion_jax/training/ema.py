"""Exponential moving averages of the parameters: how much of the old average each update keeps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.training import power_ema
from diffusion_jax.training.choices import unknown

# The share of the old average that is kept, from the number of updates made before this one (int32 scalar).
Decay = Callable[[jax.Array], jax.Array]

KINDS: dict[str, dict[str, float]] = {
    "ddpm": {"decay": 0.9999},
    "constant": {"decay": 0.9999},
    "warmup": {"decay": 0.9999},
    "edm": {"half_life": 500_000, "ramp_up_ratio": 0.05},
    "power": {"sigma_rel": 0.1},
    "none": {},
}


def make_ema(
    kind: str = "ddpm",
    decay: float | None = None,
    half_life: float | None = None,
    ramp_up_ratio: float | None = None,
    sigma_rel: float | None = None,
    batch_size: int | None = None,
) -> Decay:
    """The decay as a function of n, the number of updates made before.

    Args:
      kind: "ddpm", 1e-10 at the first update, which so copies the parameters, then `decay` (Ho et al. 2020, released
        code); "constant", always `decay` (improved-diffusion, DiT); "warmup", min(decay, (1 + n) / (10 + n))
        (TensorFlow's rule, taken over by latent diffusion); "edm", 0.5 ** (batch_size / h) with the half-life
        h = min(half_life, ramp_up_ratio * images seen) (Karras et al. 2022, released code); "power", the power-function
        profile of width sigma_rel (Karras et al. 2024, eq. 127); "none", 0, so that the average is the parameters
        themselves.
      decay: default 0.9999.
      half_life: in images; default 500,000.
      ramp_up_ratio: default 0.05; infinite for none.
      sigma_rel: default 0.1; the standard deviation of the weights over the updates, in units of their number.
      batch_size: images an update, over all hosts; needed by "edm".

    Raises:
      ValueError: an unknown kind, a value out of its range, or an option that the kind does not have.
    """
    if kind not in KINDS:
        raise unknown("ema.kind", kind, KINDS)
    options = dict(KINDS[kind])
    given = {"decay": decay, "half_life": half_life, "ramp_up_ratio": ramp_up_ratio, "sigma_rel": sigma_rel}
    for option, value in given.items():
        if value is None:
            continue
        if option not in options:
            has = ", ".join(options) or "nothing"
            raise ValueError(f"ema.{option} is {value}, but {kind!r} does not have it; it has {has}")
        if not (0 <= value < 1 if option == "decay" else value > 0):
            allowed = "at least 0 and below 1" if option == "decay" else "above 0"
            raise ValueError(f"ema.{option} is {value}; it must be {allowed}")
        options[option] = value
    if kind == "edm":
        if batch_size is None or batch_size < 1:
            raise ValueError(f"ema.kind 'edm' needs the batch size, got {batch_size}")
        return _half_life(batch_size, **options)
    if kind == "power":
        power_ema.check_width("ema.sigma_rel", options["sigma_rel"])
        return functools.partial(power_ema.decay, power_ema.exponent(options["sigma_rel"]))
    limit = options.get("decay", 0.0)

    def constant(step: jax.Array) -> jax.Array:
        return jnp.full((), limit, jnp.float32)

    def ddpm(step: jax.Array) -> jax.Array:
        return jnp.where(step < 1, 1e-10, limit).astype(jnp.float32)

    def warmup(step: jax.Array) -> jax.Array:
        n = jnp.asarray(step, jnp.float32)
        return jnp.minimum(limit, (1 + n) / (10 + n))

    return {"ddpm": ddpm, "warmup": warmup}.get(kind, constant)


def _half_life(batch_size: int, half_life: float, ramp_up_ratio: float) -> Decay:
    def decay(step: jax.Array) -> jax.Array:
        seen = jnp.asarray(step, jnp.float32) * batch_size
        # At the first update nothing was seen: the half-life is 0 and the average becomes the parameters.
        half = jnp.maximum(jnp.minimum(half_life, jnp.where(seen > 0, seen * ramp_up_ratio, 0.0)), 1e-8)
        return 0.5 ** (batch_size / half)

    return decay


def update(average: Any, params: Any, decay: jax.Array) -> Any:
    """decay * average + (1 - decay) * params, leaf by leaf in float32 or wider."""
    # Not average + (1 - decay) * (params - average): that does not return params exactly where decay is 0.
    return jax.tree.map(lambda a, p: (decay * a + (1 - decay) * p).astype(a.dtype), average, params)
