"""Exponential moving averages of the parameters: how much of the old average each update keeps."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.options import described, unknown
from diffusion_jax.training import power_ema

# The share of the old average that is kept, from the number of updates made before this one (int32 scalar).
Decay = Callable[[jax.Array], jax.Array]

_DECAY = {"decay": "share of the average that an update keeps"}


@described(_DECAY)
def ddpm(decay: float = 0.9999) -> Decay:
    """1e-10 at the first update, which so copies the parameters, then `decay` (Ho et al. 2020, released code)."""
    _check_decay(decay)
    return lambda step: jnp.where(step < 1, 1e-10, decay).astype(jnp.float32)


@described(_DECAY)
def constant(decay: float = 0.9999) -> Decay:
    """Always `decay` (improved-diffusion, DiT)."""
    _check_decay(decay)
    return lambda step: jnp.full((), decay, jnp.float32)


@described(_DECAY)
def warmup(decay: float = 0.9999) -> Decay:
    """min(decay, (1 + n) / (10 + n)) (TensorFlow's rule, taken over by latent diffusion)."""
    _check_decay(decay)

    def kept(step: jax.Array) -> jax.Array:
        n = jnp.asarray(step, jnp.float32)
        return jnp.minimum(decay, (1 + n) / (10 + n))

    return kept


@described(
    half_life="images after which a parameter's share of the average has halved",
    ramp_up_ratio="the half-life is at most this share of the images seen; infinite: no such limit",
)
def edm(half_life: float = 500_000, ramp_up_ratio: float = 0.05, *, batch_size: int | None = None) -> Decay:
    """0.5 ** (batch_size / h) with h = min(half_life, ramp_up_ratio * images seen) (Karras et al. 2022, code)."""
    for option, value in (("half_life", half_life), ("ramp_up_ratio", ramp_up_ratio)):
        if not value > 0:
            raise ValueError(f"ema.{option} is {value}; it must be above 0")
    if batch_size is None or batch_size < 1:
        raise ValueError(f"ema.kind 'edm' needs the batch size, got {batch_size}")
    return _half_life(batch_size, half_life, ramp_up_ratio)


@described(sigma_rel="width of the average, relative to the training's length")
def power(sigma_rel: float = 0.1) -> Decay:
    """The power-function profile of width sigma_rel (Karras et al. 2024, eq. 127)."""
    power_ema.check_width("ema.sigma_rel", sigma_rel)
    return functools.partial(power_ema.decay, power_ema.exponent(sigma_rel))


def none() -> Decay:
    """0, so that the average is the parameters themselves."""
    return lambda step: jnp.zeros((), jnp.float32)


# The options of each are its arguments; the batch size is the training's.
KINDS: dict[str, Callable[..., Decay]] = {
    "ddpm": ddpm,
    "constant": constant,
    "warmup": warmup,
    "edm": edm,
    "power": power,
    "none": none,
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
      kind: one of KINDS.
      decay, half_life, ramp_up_ratio, sigma_rel: the options of the kind; None takes its default.
      batch_size: images an update, over all hosts; needed by "edm".

    Raises:
      ValueError: an unknown kind, a value out of its range, or an option that the kind does not have.
    """
    if kind not in KINDS:
        raise unknown("ema.kind", kind, KINDS)
    taken = [name for name in inspect.signature(KINDS[kind]).parameters if name != "batch_size"]
    given = {"decay": decay, "half_life": half_life, "ramp_up_ratio": ramp_up_ratio, "sigma_rel": sigma_rel}
    options = {option: value for option, value in given.items() if value is not None}
    for option, value in options.items():
        if option not in taken:
            has = ", ".join(taken) or "nothing"
            raise ValueError(f"ema.{option} is {value}, but {kind!r} does not have it; it has {has}")
    return KINDS[kind](**options, **({"batch_size": batch_size} if kind == "edm" else {}))


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"ema.decay is {decay}; it must be at least 0 and below 1")


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
