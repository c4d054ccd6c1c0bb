"""Values that a field cannot have, whatever is built from it.

They would be found late, after a long training, or never: a NaN passes every comparison that is written the other way.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ml_collections import config_dict

from diffusion_jax.config import schema
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.metrics import measure, protocols, quantisation
from diffusion_jax.training import power_ema

# Numbers, and those in tuples, are finite but in these.
_MAY_BE_INFINITE = ("sampling.s_max", "sampling.guidance_interval", "ema.ramp_up_ratio")
_TUPLES_OF_NAMES = ("evaluation.metrics", "evaluation.sweep_samplers")
# Where set, at least these.
_LEAST = {
    "data.num_workers": 0,
    "training.max_bad_steps": 0,
    "training.accumulation_steps": 0,
    "sampling.eta": 0,
    "sampling.s_churn": 0,
    "sampling.s_noise": 0,
    "sampling.guidance_channels": 1,
    "evaluation.num_images": 2,  # a covariance needs two
    "evaluation.max_reference_images": 2,
    "evaluation.reference_images": 2,
    "evaluation.scored_images": 2,
    "evaluation.num_likelihood_images": 0,
    "evaluation.every": 0,
    "evaluation.patience": 0,
}
_ABOVE_ZERO = ("sampling.clip", "sampling.snr", "latents.final_std")
# jax.random.key would take a larger one modulo 2^32 and so repeat a smaller one's images.
_LARGEST_SEED = 2**32 - 1


def check(config: config_dict.ConfigDict) -> None:
    """Raises ValueError, one line, for the first such value; the config's structure and types are right already."""
    _check_numbers(config, "")
    if not config.name or config.name in (".", "..") or set(config.name) & set("/\\"):
        raise ValueError(f"config.name is {config.name!r}; it names a folder in runs/, so it cannot have slashes")
    if not 0 <= config.seed <= _LARGEST_SEED:
        raise ValueError(f"config.seed is {config.seed}; it must be from 0 to {_LARGEST_SEED}")
    for path, least in _LEAST.items():
        value = schema.get(config, path)
        if value is not None and value < least:
            raise ValueError(f"config.{path} is {value}; it must be {least} or more")
    for path in _ABOVE_ZERO:
        value = schema.get(config, path)
        if value is not None and not value > 0:
            raise ValueError(f"config.{path} is {value}; it must be above 0")
    channels = config.sampling.guidance_channels
    if channels is not None and channels > config.data.channels:
        raise ValueError(
            f"config.sampling.guidance_channels is {channels}, but config.data.channels is {config.data.channels}"
        )
    _check_averages(config)
    _check_evaluation(config.evaluation)


def _check_numbers(section: config_dict.ConfigDict, prefix: str) -> None:
    for key, value in section.items():
        path = prefix + key
        if isinstance(value, config_dict.ConfigDict):
            _check_numbers(value, f"{path}.")
            continue
        for number in value if isinstance(value, (tuple, list)) else (value,):
            _check_number(path, value, number)


def _check_number(path: str, value: Any, number: Any) -> None:
    if isinstance(value, (tuple, list)):
        kind = str if path in _TUPLES_OF_NAMES else (int, float)
        if not isinstance(number, kind) or isinstance(number, bool):
            wanted = "names" if kind is str else "numbers"
            raise ValueError(f"config.{path} is {tuple(value)!r}, which has {number!r}; it must hold {wanted}")
    if isinstance(number, float) and (math.isnan(number) or (math.isinf(number) and path not in _MAY_BE_INFINITE)):
        raise ValueError(f"config.{path} is {value!r}; it must be finite")


def _check_averages(config: config_dict.ConfigDict) -> None:
    try:
        power_ema.PosthocEMA(tuple(config.posthoc_ema.sigma_rels), config.posthoc_ema.snapshot_every)
        for field in ("ema_width", "guide_ema_width"):
            if config.sampling[field] is not None:
                power_ema.check_width(f"sampling.{field}", config.sampling[field])
    except ValueError as error:
        raise ValueError(f"config.{error}") from None
    if config.sampling.ema_width is not None and config.posthoc_ema.snapshot_every is None:
        raise ValueError(
            f"config.sampling.ema_width is {config.sampling.ema_width}, which is put together from snapshots of the "
            "training; set config.posthoc_ema.snapshot_every to the steps between them"
        )


def _check_evaluation(evaluation: config_dict.ConfigDict) -> None:
    """What is evaluated last is checked first."""
    try:
        if not evaluation.metrics:
            raise ValueError(f"metrics is empty; it can hold {', '.join(measure.METRICS)}")
        if evaluation.features is not None or evaluation.every:
            # unset: the small classifier, which no metric names
            name = "a classifier" if evaluation.features is None else measure.resolve_features(evaluation.features)
            measure.check_metrics(evaluation.metrics, name)
        if evaluation.protocol is not None:
            protocols.get(evaluation.protocol)
        _check_quantisation(evaluation)
    except ValueError as error:
        raise ValueError(f"config.evaluation: {error}") from None
    for field in ("reference", "weights"):
        path = evaluation[field]
        if path is not None and not Path(path).expanduser().exists():
            raise ValueError(f"config.evaluation.{field} is {path!r}; there is no such file")
    for name in evaluation.sweep_samplers:
        if name not in SAMPLERS:
            raise ValueError(f"config.evaluation.sweep_samplers has {name!r}; it can have {', '.join(SAMPLERS)}")
    for steps in evaluation.sweep_steps:
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(
                f"config.evaluation.sweep_steps has {steps!r}, which config.sampling.num_steps cannot be; each must be "
                "1 or more"
            )


def _check_quantisation(evaluation: config_dict.ConfigDict) -> None:
    rule, features = evaluation.quantisation, evaluation.features
    if rule not in quantisation.RULES:
        raise ValueError(f"quantisation is {rule!r}; it can be {', '.join(quantisation.RULES)}")
    if rule == "none" and features is not None and measure.resolve_features(features) != protocols.INCEPTION:
        raise ValueError(
            f"quantisation is 'none', which is of Inception's features, but features is {features!r}; set it to "
            "'half_up' or 'floor'"
        )
