"""Checks a config before anything is compiled: one line that names the field, what it got and what it could be."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ml_collections import config_dict

from diffusion_jax.config import build
from diffusion_jax.config.experiment import Experiment
from diffusion_jax.config.section import ConfigError, errors
from diffusion_jax.training import power_ema

# Numbers, and those in tuples, are finite but in these.
_MAY_BE_INFINITE = ("sampling.s_max", "sampling.guidance_interval", "ema.ramp_up_ratio")


def check(config: config_dict.ConfigDict, num_devices: int) -> None:
    """Raises ConfigError for what cannot be: by itself, with other sections, or on so many devices.

    Fields have their types already, as a config accepts no others. What only the data or the objects together can judge
    (a resolution that the network's levels do not divide) is checked where they are built, in
    `diffusion_jax.config.build`, also before anything is compiled.
    """
    if not isinstance(config, Experiment):
        raise ConfigError(
            f"the config is of type {type(config).__name__}; get_config() has to change and to return "
            "diffusion_jax.config.default()"
        )
    for path, value in flatten(config):
        _check_finite(path, value)
    with config.run.errors():
        config.run.build()
    for name, section in config.sections():
        with section.errors():
            section.build_common()
            if name in _ON_THEIR_OWN or (not section.variants.has_choice and not section.variants.filled):
                section.build()
    with config.training.errors():
        config.training.build(seed=config.seed, debug=config.debug)
    with errors("config"):
        _check_averages(config)
        build.method_of(config).check(config)
    build.optimization(config)
    _check_divisible(config, num_devices)


# Sections whose constructor needs nothing else.
_ON_THEIR_OWN = ("method",)


def _check_finite(path: str, value: Any) -> None:
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, float) and (math.isnan(number) or (math.isinf(number) and path not in _MAY_BE_INFINITE)):
            raise ConfigError(f"config.{path} is {value!r}; it must be finite")


def _check_averages(config: Experiment) -> None:
    for field in ("ema_width", "guide_ema_width"):
        if (width := config.sampling.get(field)) is not None:
            power_ema.check_width(f"config.sampling.{field}", width)
    if config.sampling.ema_width is not None and config.posthoc_ema.snapshot_every is None:
        raise ValueError(
            f"config.sampling.ema_width is {config.sampling.ema_width}, which is put together from snapshots of the "
            "training; set config.posthoc_ema.snapshot_every to the steps between them"
        )


def _check_divisible(config: Experiment, num_devices: int) -> None:
    parts = num_devices * max(1, config.training.accumulation_steps)
    if config.training.batch_size % parts:
        size = config.training.batch_size
        raise ConfigError(
            f"config.training.batch_size is {size}; it must be a multiple of {parts} "
            f"({num_devices} devices x {config.training.accumulation_steps} accumulation steps), such as "
            f"{max(parts, size // parts * parts)}"
        )
    if config.sampling.batch_size % num_devices:
        raise ConfigError(
            f"config.sampling.batch_size is {config.sampling.batch_size}; it must be a multiple of the {num_devices} "
            "devices"
        )


def flatten(config: config_dict.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every field."""
    for key, value in config.items():
        if isinstance(value, config_dict.ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
