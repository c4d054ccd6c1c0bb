"""From a checked config to the objects that it describes. Whatever they refuse becomes a ConfigError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import optax
from flax import linen as nn
from ml_collections import config_dict

from diffusion_jax import data
from diffusion_jax.config import options, schema
from diffusion_jax.config.check import ConfigError
from diffusion_jax.data.sources import Split
from diffusion_jax.diffusion import samplers
from diffusion_jax.diffusion.objective import Objective
from diffusion_jax.diffusion.process import PROCESSES, Process
from diffusion_jax.diffusion.weighting import WEIGHTINGS
from diffusion_jax.methods.diffusion import Diffusion
from diffusion_jax.models.registry import MODELS
from diffusion_jax.training import ema, optimizer


@contextlib.contextmanager
def section(name: str) -> Iterator[None]:
    """Turns a ValueError into a ConfigError that says which section of the config it comes from."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        line = " ".join(str(error).split())
        for prefix in (f"config.{name}", f"{name}.", f"{name} "):
            if line.startswith(prefix):
                raise ConfigError(line if prefix.startswith("config") else f"config.{line}") from error
        raise ConfigError(f"config.{name}: {line}") from error


def source(config: config_dict.ConfigDict, split: Split) -> data.Source:
    """One split of the data; a class-conditional method needs labels in it."""
    with section("data"):
        loaded = data.load_source(
            split=split, **{k: config.data[k] for k in options.parameters(data.load_source, ["split"])}
        )
        if config.method.class_conditional and loaded.num_classes is None:
            raise ConfigError(
                "config.method.class_conditional is True, but the data has no labels: set it to False, or sort the "
                "images into one folder a class"
            )
    return loaded


def process(config: config_dict.ConfigDict) -> Process:
    """The forward process."""
    with section("process"):
        return PROCESSES[config.process.name](**options.chosen(config.process))


def network(config: config_dict.ConfigDict, num_classes: int | None) -> nn.Module:
    """The denoising network, checked against the image size."""
    with section("model"):
        constructor = MODELS[config.model.name]
        fields = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in options.chosen(config.model).items()
        }
        if "null_class" in options.parameters(constructor):
            fields["null_class"] = config.method.label_dropout > 0
        model: Any = constructor(
            out_channels=config.data.channels * (1 if config.method.bound == "none" else 2),
            num_classes=num_classes,
            dtype=config.training.compute_dtype,
            **fields,
        )
        model.validate(config.data.image_size, config.data.channels)
    return model


def sampler(config: config_dict.ConfigDict, chain: Process) -> samplers.Sampler | samplers.AdaptiveSampler:
    """The table of sampling steps."""
    with section("sampling"):
        chosen = options.chosen(config.sampling)
        constructor = samplers.SAMPLERS[config.sampling.name]
        given = {key: value for key, value in chosen.items() if key not in schema.SHARED_FIELDS["sampling"]}
        table = constructor(chain, config.method.prediction, **given)
        if table.learned_variance and config.method.bound == "none":
            raise ConfigError(
                "config.sampling.variance is 'learned_range', but config.method.bound is 'none': the network learns a "
                "variance with bound 'hybrid' or 'vlb'"
            )
        return table


def method(config: config_dict.ConfigDict, num_classes: int | None) -> Diffusion:
    """What is trained and sampled; num_classes None makes it unconditional."""
    chain = process(config)
    with section("weighting"):
        weighting = WEIGHTINGS[config.weighting.name](**options.chosen(config.weighting))
    with section("method"):
        objective = Objective(chain, config.method.prediction, weighting, config.method.bound)
    return Diffusion(
        network=network(config, num_classes),
        objective=objective,
        sampler=sampler(config, chain),
        image_shape=(config.data.image_size, config.data.image_size, config.data.channels),
        num_classes=num_classes,
        label_dropout=config.method.label_dropout,
    )


def optimization(config: config_dict.ConfigDict) -> tuple[optax.GradientTransformation, optimizer.Schedule, ema.Decay]:
    """The optimiser, its learning rate as a function of the step, and the decay of the moving average."""
    with section("optimizer"):
        update, rate = optimizer.make_optimizer(
            num_steps=config.training.num_steps, batch_size=config.training.batch_size, **config.optimizer
        )
    with section("ema"):
        decay = ema.make_ema(batch_size=config.training.batch_size, **config.ema)
    return update, rate, decay


def image_keys(config: config_dict.ConfigDict, indices: jax.Array) -> jax.Array:
    """One PRNG key [N] for each image of a sampling run: a function of (seed, index) alone."""
    base = jax.random.fold_in(jax.random.key(config.seed), 0x5A)
    return jax.vmap(jax.random.fold_in, (None, 0))(base, indices)
