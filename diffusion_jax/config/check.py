"""Checks a config before anything is compiled: one line that names the field, what it got and what it could be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from ml_collections import config_dict

from diffusion_jax.config import options, ranges, schema
from diffusion_jax.data.sources import LATENT_SOURCES
from diffusion_jax.diffusion.coupling import COUPLINGS
from diffusion_jax.diffusion.objective import BOUNDS
from diffusion_jax.diffusion.preconditioning import PRECONDITIONINGS
from diffusion_jax.diffusion.prediction import PREDICTIONS
from diffusion_jax.models.registry import CLASSIFIERS, MODELS

METHODS = ("diffusion", "latent_diffusion", "classifier")
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
MATMUL_PRECISIONS = ("highest", "high", "default")

# Where set, at least 1.
_POSITIVE = (
    *("data.image_size", "data.channels", "process.num_timesteps", "sampling.num_steps"),
    *("training.batch_size", "training.num_steps"),
    *("training.log_every", "training.checkpoint_every", "training.max_to_keep"),
    *("sampling.num_images", "sampling.batch_size", "sampling.num_frames"),
    *("evaluation.num_images", "evaluation.max_reference_images", "evaluation.classifier_steps"),
    "evaluation.scored_images",
)
# What belongs to images that are generated; a classifier's run has these values only.
_NOT_OF_CLASSIFIERS = {
    "method.bound": "none",
    "method.coupling": "independent",
    "method.adaptive_weighting": False,
    "method.class_conditional": False,
    "time_sampler.name": "process",
    "weighting.name": "simple",
    "augmentation.probability": 0,
    "evaluation.every": 0,
    "evaluation.num_likelihood_images": 0,
    "evaluation.features": None,
    "evaluation.keep_best": None,
    "evaluation.patience": 0,
    "evaluation.sweep_samplers": (),
    "evaluation.sweep_steps": (),
    "evaluation.sweep_guidance": (),
    "sampling.guidance_scale": 1.0,
    "sampling.guide": None,
    "sampling.ema_width": None,
}
# None switches these off, although their default is a number.
_OPTIONAL = ("config.optimizer.clip_norm",)


class ConfigError(ValueError):
    """A setting that cannot be; the message is one line for the user."""


def unknown(what: str, got: str, known: Iterable[str]) -> ConfigError:
    """The error for a name that does not exist, with the nearest that does."""
    known = sorted(known)
    near = difflib.get_close_matches(str(got), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it can be {', '.join(known)}"
    return ConfigError(f"{what} {got!r} does not exist; {hint}")


def check(config: config_dict.ConfigDict, num_devices: int) -> None:
    """Raises ConfigError for a field that is unknown, of the wrong type or impossible on its own.

    What only the objects themselves can judge (a resolution that the network's levels do not divide) is checked where
    they are built, in `diffusion_jax.config.build`, also before anything is compiled.
    """
    reference = schema.default()
    _check_structure(config, reference, "config")
    for section, (registry, excluded) in schema.NAMED_SECTIONS.items():
        _check_named(config[section], section, registry, excluded)
    for path, choices in (
        ("method.name", METHODS),
        ("method.prediction", (*PREDICTIONS, *PRECONDITIONINGS)),
        ("method.bound", BOUNDS),
        ("method.coupling", COUPLINGS),
        ("training.compute_dtype", COMPUTE_DTYPES),
        ("training.matmul_precision", MATMUL_PRECISIONS),
        ("evaluation.checkpoint", ("newest", "best")),
    ):
        if schema.get(config, path) not in choices:
            raise unknown(f"config.{path}", schema.get(config, path), choices)
    for path in _POSITIVE:
        value = schema.get(config, path)
        if value is None and schema.get(reference, path) is None:
            continue
        if value is None or value < 1:
            raise ConfigError(f"config.{path} is {value}; it must be 1 or more")
    try:
        ranges.check(config)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if not 0 <= config.method.label_dropout <= 1:
        raise ConfigError(f"config.method.label_dropout is {config.method.label_dropout}; it must be from 0 to 1")
    if not 0 < config.method.least_crop <= 1:
        raise ConfigError(f"config.method.least_crop is {config.method.least_crop}; it must be above 0, at most 1")
    _check_guidance(config)
    _check_classifier(config)
    _check_latents(config)
    _check_divisible(config, num_devices)


def _check_guidance(config: config_dict.ConfigDict) -> None:
    sampling = config.sampling
    for field in ("guidance_interval", "guidance_rescale", "guidance_channels", "guide"):
        if sampling[field] and sampling.guidance_scale == 1:
            raise ConfigError(
                f"config.sampling.{field} is {sampling[field]!r}, but config.sampling.guidance_scale is 1, which is no "
                "guidance; set it to another number"
            )
    for field in ("guide_step", "guide_ema_width"):
        if sampling[field] is not None and not sampling.guide:
            raise ConfigError(
                f"config.sampling.{field} is {sampling[field]}, which is of a guide; set config.sampling.guide to the "
                "work directory of a run"
            )
    if sampling.guide_step is not None and sampling.guide_ema_width is None:
        raise ConfigError(
            f"config.sampling.guide_step is {sampling.guide_step}, one of the guide's EMA snapshots; set "
            "config.sampling.guide_ema_width to the sigma_rel of their average, such as 0.05"
        )
    without_null = config.method.class_conditional and not config.method.label_dropout
    if without_null and sampling.guidance_scale != 1 and not sampling.guide:
        raise ConfigError(
            f"config.sampling.guidance_scale is {sampling.guidance_scale}, which needs a network that has seen images "
            "without labels; set config.method.label_dropout above 0, or guidance_scale to 1"
        )


def _check_classifier(config: config_dict.ConfigDict) -> None:
    """Of a run that trains a classifier, and of one that is guided by one."""
    sampling, method = config.sampling, config.method
    if (method.name == "classifier") != (config.model.name in CLASSIFIERS):
        raise ConfigError(
            f"config.method.name is {method.name!r} and config.model.name {config.model.name!r}; a classifier is "
            f"{' or '.join(CLASSIFIERS)}, and diffusion has {', '.join(MODELS)}"
        )
    if sampling.classifier and method.name != "diffusion":
        raise ConfigError(
            f"config.sampling.classifier is {sampling.classifier!r}, which guides images; config.method.name is "
            f"{method.name!r}, and could be 'diffusion'"
        )
    if sampling.classifier and method.prediction not in PREDICTIONS:
        raise ConfigError(
            f"config.method.prediction is {method.prediction!r}; with config.sampling.classifier it can be "
            f"{', '.join(PREDICTIONS)}"
        )
    if sampling.classifier_scale != 1 and not sampling.classifier:
        raise ConfigError(
            f"config.sampling.classifier_scale is {sampling.classifier_scale}, which is of a classifier; set "
            "config.sampling.classifier to the work directory of its run"
        )
    if method.least_crop != 1 and method.name != "classifier":
        raise ConfigError(f"config.method.least_crop is {method.least_crop}, which is of a classifier; set it to 1")
    for field, off in _NOT_OF_CLASSIFIERS.items():
        value = schema.get(config, field)
        if method.name == "classifier" and value != off:
            raise ConfigError(f"config.{field} is {value!r}, which a classifier does not have; set it to {off!r}")


def _check_latents(config: config_dict.ConfigDict) -> None:
    is_latent = config.method.name == "latent_diffusion"
    if is_latent != (config.data.name in LATENT_SOURCES):
        raise ConfigError(
            f"config.method.name is {config.method.name!r} and config.data.name {config.data.name!r}; latent_diffusion "
            f"is for {' and '.join(LATENT_SOURCES)}, diffusion for the others"
        )
    for field, off in {
        "augmentation.probability": 0,
        "evaluation.num_likelihood_images": 0,
        "data.flip": False,
    }.items():
        if is_latent and schema.get(config, field) != off:
            raise ConfigError(
                f"config.{field} is {schema.get(config, field)}, which is for images; set it to {off} for latents"
            )


def _check_divisible(config: config_dict.ConfigDict, num_devices: int) -> None:
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


def _check_structure(config: config_dict.ConfigDict, reference: config_dict.ConfigDict, path: str) -> None:
    for key in config:
        if key not in reference:
            raise unknown(f"{path} field", key, reference.keys())
    for key in reference:
        if key not in config:
            raise ConfigError(f"{path}.{key} is missing; start the config from diffusion_jax.config.default()")
        expected, value = reference[key], config[key]
        if isinstance(expected, config_dict.ConfigDict):
            if not isinstance(value, config_dict.ConfigDict):
                raise ConfigError(f"{path}.{key} is {value!r}; it is a section with {', '.join(expected.keys())}")
            _check_structure(value, expected, f"{path}.{key}")
        else:
            _check_type(value, expected, reference.get_type(key), f"{path}.{key}")


def _check_type(value: Any, expected: Any, kind: type, path: str) -> None:
    if value is None and (expected is None or path in _OPTIONAL):
        return
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if kind is tuple and isinstance(value, list):
        fits = True
    if isinstance(value, bool) and kind is not bool:
        fits = False
    if not fits:
        raise ConfigError(f"{path} is {value!r}, of type {type(value).__name__}; it must be of type {kind.__name__}")


def _check_named(
    section: config_dict.ConfigDict, name: str, registry: options.Registry, excluded: Iterable[str]
) -> None:
    if section.name not in registry:
        raise unknown(f"config.{name}.name", section.name, registry)
    taken = options.parameters(registry[section.name], excluded)
    for option in options.chosen(section):
        if option not in taken and option not in schema.SHARED_FIELDS.get(name, ()):
            raise ConfigError(
                f"config.{name}.{option} is {section[option]!r}, but {section.name!r} does not take it; "
                f"it takes {', '.join(taken) or 'nothing'}"
            )


def refuse_override(path: str, value: str) -> str | None:
    """Why --config.<path>=<value> cannot be, in one line; None if nothing is wrong with it by itself."""
    section = schema.default()
    *parents, field = path.split(".")
    for i, part in enumerate(parents):
        if part not in section or not isinstance(section[part], config_dict.ConfigDict):
            return str(unknown(".".join(["config", *parents[:i]]) + " field", part, section.keys()))
        section = section[part]
    if field not in section:
        return str(unknown(".".join(["config", *parents]) + " field", field, section.keys()))
    kind = section.get_type(field)
    if kind in (int, float):
        try:
            kind(value)
        except ValueError:
            return f"config.{path} is {value!r}; it must be of type {kind.__name__}"
    if kind is bool and value.lower() not in ("true", "false", "1", "0"):
        return f"config.{path} is {value!r}; it must be true or false"
    return None


def flatten(config: config_dict.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of every field."""
    for key, value in config.items():
        if isinstance(value, config_dict.ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
