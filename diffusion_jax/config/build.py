"""From a checked config to the objects that it describes. Whatever they refuse becomes a ConfigError."""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable
from typing import Any

import jax
import optax

from diffusion_jax import data, hub
from diffusion_jax.config import saved
from diffusion_jax.config.experiment import Experiment
from diffusion_jax.config.section import ConfigError, errors
from diffusion_jax.data.sources import Split
from diffusion_jax.diffusion.arrays import key_of_seed
from diffusion_jax.methods.latent_space import Decoder
from diffusion_jax.methods.method import Context, Method
from diffusion_jax.methods.registry import METHODS
from diffusion_jax.training import ema, optimizer, power_ema
from diffusion_jax.training.method import WHOLE, updates_per_step
from diffusion_jax.training.state import Optimizers


def section(name: str) -> Any:
    """Turns a ValueError into a ConfigError that says which section of the config it comes from."""
    return errors(f"config.{name}")


def method_of(config: Experiment) -> Method:
    """What `config.method.name` picks."""
    return METHODS[config.method.name]


def source(config: Experiment, split: Split) -> data.Source:
    """One split of the data; some methods need labels in it."""
    with config.data.errors():
        loaded = data.load_source(split=split, **config.data.arguments(data.load_source))
        if (reason := method_of(config).needs_labels(config)) and loaded.num_classes is None:
            raise ConfigError(f"{reason}, but the data has no labels: sort the images into one folder for each class")
    return loaded


def model(config: Experiment, train: Callable[[], data.Source] | None = None) -> Any:
    """What is trained. train: opens the training data, if not as the config says."""
    with errors("config"):
        return method_of(config).build(config, _context(config, train))


def of_classes(num_classes: int | None) -> Callable[[], Any]:
    """Stands for training data with so many classes, where a model is wanted and the data are not at hand."""
    return lambda: types.SimpleNamespace(num_classes=num_classes)


def decoder(config: Experiment, built: Any, train: Callable[[], data.Source] | None = None) -> Decoder | None:
    """From what a model draws to images; None where that is images already. Its parameters are the host's."""
    return method_of(config).decoder(config, built, _context(config, train))


def _context(config: Experiment, train: Callable[[], data.Source] | None) -> Context:
    return Context(
        train=train or functools.partial(source, config, "train"),
        read_config=saved.read,
        count_classes=lambda other: source(other, "train").num_classes,
        load=hub.load,
    )


def optimization(config: Experiment, built: Any = None) -> tuple[Optimizers, Any, ema.Decay]:
    """The optimiser, its learning rate as a function of the step, and the decay of the moving average.

    Of a method whose parameters are in parts, part -> optimiser and part -> rate; `built` is its model, without which
    each part is taken to be updated once a step.
    """
    training, sections = config.training, method_of(config).optimizers
    found = {part: _descent(config, name, built, part) for part, name in sections.items()}
    updates = {part: update for part, (update, _) in found.items()}
    rates = {part: rate for part, (_, rate) in found.items()}
    with config.ema.errors():
        decay = config.ema.build(batch_size=training.batch_size)
    return updates.get(WHOLE, updates), rates.get(WHOLE, rates), decay


def _descent(
    config: Experiment, name: str, built: Any, part: str
) -> tuple[optax.GradientTransformation, optimizer.LearningRate]:
    chosen, training = config[name], config.training
    steps = training.num_steps if built is None else math.ceil(training.num_steps * updates_per_step(built, part))
    with chosen.errors():
        update, rate = optimizer.make_optimizer(num_steps=steps, batch_size=training.batch_size, **chosen.to_dict())
    # Some networks have parameters that are only directions.
    if projection := getattr(config.model.constructor if "model" in config else None, "projection", None):
        update = optimizer.projected(update, projection)
    return update, rate


def posthoc_ema(config: Experiment) -> power_ema.PosthocEMA | None:
    """The averages that are kept for `config.sampling.ema_width`; None for none."""
    if "posthoc_ema" not in config:
        return None
    with config.posthoc_ema.errors():
        kept = config.posthoc_ema.build()
        return kept if kept.snapshot_every else None


def image_keys(config: Experiment, indices: jax.Array) -> jax.Array:
    """One PRNG key [N] for each image of a sampling run: a function of (seed, index) alone."""
    seed = config.seed if config.sampling.seed is None else config.sampling.seed
    base = jax.random.fold_in(key_of_seed(seed), 0x5A)
    return jax.vmap(jax.random.fold_in, (None, 0))(base, indices)
