"""From a checked config to the objects that it describes. Whatever they refuse becomes a ConfigError."""

from __future__ import annotations

import contextlib
import functools
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import config_dict

from diffusion_jax import data, hub
from diffusion_jax.config import options, saved, schema
from diffusion_jax.config.check import ConfigError
from diffusion_jax.data.sources import Split, haar_digits
from diffusion_jax.diffusion import samplers
from diffusion_jax.diffusion.objective import Objective
from diffusion_jax.diffusion.preconditioning import PRECONDITIONINGS
from diffusion_jax.diffusion.process import PROCESSES, DiscreteProcess, Process
from diffusion_jax.diffusion.time_sampler import TIME_SAMPLERS, LossSecondMoment
from diffusion_jax.diffusion.weighting import WEIGHTINGS
from diffusion_jax.methods import latents
from diffusion_jax.methods.augmentation import NUM_LABELS, Augmentation
from diffusion_jax.methods.classifier.noisy_classifier import NoisyClassifier
from diffusion_jax.methods.diffusion.guiding import Guidance
from diffusion_jax.methods.diffusion.model import Diffusion
from diffusion_jax.methods.latent_diffusion.model import LatentDiffusion
from diffusion_jax.methods.latents import Decoder, LatentSpace
from diffusion_jax.models.edm2_unet import EDM2UNet
from diffusion_jax.models.magnitude_preserving import normalize_weights
from diffusion_jax.models.registry import CLASSIFIERS, NETWORKS
from diffusion_jax.training import ema, optimizer, power_ema


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
    """One split of the data; a class-conditional method and a classifier need labels in it."""
    with section("data"):
        loaded = data.load_source(
            split=split, **{k: config.data[k] for k in options.parameters(data.load_source, ["split"])}
        )
        if config.method.class_conditional and loaded.num_classes is None:
            raise ConfigError(
                "config.method.class_conditional is True, but the data has no labels: set it to False, or sort the "
                "images into one folder a class"
            )
        if config.method.name == "classifier" and loaded.num_classes is None:
            raise ConfigError(
                "config.method.name is 'classifier', but the data has no labels: sort the images into one folder for "
                "each class"
            )
    return loaded


def process(config: config_dict.ConfigDict) -> Process:
    """The forward process."""
    with section("process"):
        return PROCESSES[config.process.name](**options.chosen(config.process))


def network(config: config_dict.ConfigDict, num_classes: int | None) -> nn.Module:
    """The denoising network or the classifier, checked against the image size."""
    with section("model"):
        constructor = NETWORKS[config.model.name]
        fields = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in options.chosen(config.model).items()
        }
        if "null_class" in options.parameters(constructor):
            fields["null_class"] = config.method.label_dropout > 0
        if "out_channels" in options.parameters(constructor):
            fields["out_channels"] = config.data.channels * (1 if config.method.bound == "none" else 2)
        model: Any = constructor(
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
        _check_sampled(constructor, config, chain)
        table = constructor(chain, config.method.prediction, **given)
        if table.learned_variance and config.method.bound == "none":
            raise ConfigError(
                "config.sampling.variance is 'learned_range', but config.method.bound is 'none': the network learns a "
                "variance with bound 'hybrid', 'hybrid_unscaled' or 'vlb'"
            )
        return table


def _check_sampled(constructor: Any, config: config_dict.ConfigDict, chain: Process) -> None:
    """Some samplers are for chains and for what a network says of the noise there."""
    if typing.get_type_hints(constructor)["process"] is not DiscreteProcess:
        return
    name = config.sampling.name
    if not isinstance(chain, DiscreteProcess):
        raise ValueError(
            f"name {name!r} needs a discrete process, but config.process.name is {config.process.name!r}; "
            "name can be euler, heun, edm, dpmpp, unipc or adaptive, among others"
        )
    if config.method.prediction in PRECONDITIONINGS:
        raise ValueError(
            f"name {name!r} does not know config.method.prediction {config.method.prediction!r}; name can be edm, "
            "euler, heun, dpmpp or unipc, among others"
        )


def method(
    config: config_dict.ConfigDict, num_classes: int | None, record: Mapping[str, Any] | None = None
) -> Diffusion:
    """What is trained and sampled; num_classes None makes it unconditional. record: what latents say of themselves."""
    chain = process(config)
    with section("weighting"):
        weighting = WEIGHTINGS[config.weighting.name](**options.chosen(config.weighting))
    times = time_sampler(config, chain)
    with section("method"):
        objective = Objective(chain, config.method.prediction, weighting, config.method.bound, times)
    model = network(config, num_classes)
    if config.method.adaptive_weighting and not hasattr(model, "log_variance"):
        raise ConfigError(
            f"config.method.adaptive_weighting is True, but {config.model.name!r} learns no weighting; "
            "config.model.name 'edm2_unet' does"
        )
    constructor: Any = Diffusion
    if config.method.name == "latent_diffusion":
        constructor = functools.partial(LatentDiffusion, space=latent_space(config, record or {}))
    return constructor(
        network=model,
        objective=objective,
        sampler=sampler(config, chain),
        image_shape=(config.data.image_size, config.data.image_size, config.data.channels),
        num_classes=num_classes,
        label_dropout=config.method.label_dropout,
        augmentation=augmentation(config),
        coupling=config.method.coupling,
        adaptive_weighting=config.method.adaptive_weighting,
        guidance=guidance(config, num_classes),
    )


def noisy_classifier(config: config_dict.ConfigDict, num_classes: int | None) -> NoisyClassifier:
    """What a run of method classifier trains."""
    size = config.data.image_size
    assert num_classes is not None  # `source` refuses data without labels
    return NoisyClassifier(
        network=network(config, num_classes),
        process=process(config),
        image_shape=(size, size, config.data.channels),
        num_classes=num_classes,
        least_crop=config.method.least_crop,
    )


def latent_space(config: config_dict.ConfigDict, record: Mapping[str, Any]) -> LatentSpace:
    """What the network works on, by the config or else by what the latents say of themselves."""
    with section("latents"):
        statistics = {}
        for field in ("mean", "std"):
            given = record.get(field) if config.latents[field] is None else config.latents[field]
            if given is None:
                raise ValueError(
                    f"latents.{field} is unset, and the data do not say it; give a number for each channel"
                )
            statistics[field] = tuple(float(value) for value in given)
        asked, found = config.latents.unit_range, record.get("unit_range", False)
        if record and asked != found:
            names = {True: "[0, 1]", False: "[-1, 1]"}
            raise ValueError(
                f"latents.unit_range is {asked}, but the data are latents of images in {names[found]}; set it to "
                f"{found}, or encode images {'with' if asked else 'without'} --unit_range"
            )
        space = LatentSpace(**statistics, final_std=config.latents.final_std, unit_range=asked)
        if len(space.mean) != config.data.channels:
            raise ValueError(
                f"latents.mean is {space.mean}, but config.data.channels is {config.data.channels}; it needs as many"
            )
        return space


def decoder(config: config_dict.ConfigDict, space: LatentSpace, record: Mapping[str, Any]) -> Decoder:
    """From what the network works on to images. Raises ConfigError where there is no autoencoder."""
    with section("latents"):
        if record.get("decoder") == "haar":
            return Decoder(lambda _, x: jnp.clip(haar_digits.decode(space.to_latents(x)), -1, 1), None)
        folder = config.latents.vae or record.get("vae")
        if folder is None:
            raise ValueError("latents.vae is unset; it is the folder of the autoencoder that made the latents")
        autoencoder, params = hub.load(folder)
        if getattr(autoencoder, "latent_channels", None) != config.data.channels:
            raise ValueError(
                f"latents.vae {folder!r} holds {type(autoencoder).__name__}, which is no autoencoder with latents of "
                f"{config.data.channels} channels"
            )
        return Decoder(functools.partial(latents.decode, autoencoder, space=space), params)


def time_sampler(config: config_dict.ConfigDict, chain: Process) -> LossSecondMoment | None:
    """How times are drawn, where not as the process says."""
    name = config.time_sampler.name
    with section("time_sampler"):
        if name == "process":
            return None
        if not isinstance(chain, DiscreteProcess):
            raise ValueError(f"{name!r} needs a discrete process, such as linear or cosine")
        return TIME_SAMPLERS[name](chain.num_timesteps, **options.chosen(config.time_sampler))


def augmentation(config: config_dict.ConfigDict) -> Augmentation | None:
    """What is done to training images; None for nothing."""
    with section("augmentation"):
        chosen = Augmentation(**config.augmentation)
        if not chosen.probability:
            return None
        if config.model.get("augment_dim") != NUM_LABELS or "augment_dim" not in options.parameters(
            NETWORKS[config.model.name]
        ):
            raise ValueError(
                f"augmentation.probability is {chosen.probability}, which needs a network that is told of transforms: "
                f"config.model.name 'edm_unet' with config.model.augment_dim {NUM_LABELS}"
            )
        return chosen


def guidance(config: config_dict.ConfigDict, num_classes: int | None) -> Guidance:
    """What the guidance scale acts on; the guide's config is read from its work directory."""
    sampling = config.sampling
    with section("sampling"):
        guide, is_conditional = None, False
        if sampling.guide:
            told = guide_config(config)
            is_conditional = told.method.class_conditional
            if is_conditional and num_classes is None:
                raise ValueError(f"guide {sampling.guide!r} is told the class, but the network that it guides is not")
            guide = network(told, num_classes if is_conditional else None)
        interval = None if sampling.guidance_interval is None else tuple(sampling.guidance_interval)
        return Guidance(
            interval,
            sampling.guidance_rescale,
            sampling.guidance_channels,
            guide,
            is_conditional,
            guiding_classifier(config),
        )


def guide_config(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """The config of the run that guides. Raises ValueError where its network cannot."""
    same = ["method.prediction", *(f"latents.{key}" for key in ("mean", "std", "final_std"))]
    return _config_of_guide(config, "guide", same)


def _config_of_guide(config: config_dict.ConfigDict, field: str, same: Sequence[str]) -> config_dict.ConfigDict:
    """The config of the run that a field of `sampling` names; it has the same images, process and `same` fields."""
    folder = config.sampling[field]
    try:
        told = saved.read(Path(folder).expanduser())
    except ConfigError as error:
        raise ValueError(f"{field} {folder!r} is no work directory of a run: {error}") from error
    for path in ("data.image_size", "data.channels", *(f"process.{key}" for key in config.process), *same):
        here, there = (saved.with_tuples(schema.get(each, path)) for each in (config, told))
        if here != there:
            raise ValueError(f"{field} {folder!r} was trained with {path} {there!r}, but here it is {here!r}")
    return told


def guiding_classifier(config: config_dict.ConfigDict) -> nn.Module | None:
    """The classifier that guides; None without one. Raises ValueError where it cannot.

    Of a folder that is no run, but a network that `hub.load` opens, the process is not known and so not compared.
    """
    folder = config.sampling.classifier
    if not folder:
        return None
    path = Path(folder).expanduser()
    if (path / "checkpoints").is_dir():
        told = _config_of_guide(config, "classifier", ())
        if told.method.name != "classifier":
            raise ValueError(f"classifier {folder!r} is a run of method {told.method.name!r}, not of a classifier")
        if not any(child.name.isdigit() for child in (path / "checkpoints").iterdir()):
            raise ValueError(f"classifier {folder!r} has no checkpoint; train it first")
        same_data = all(told.data[key] == config.data[key] for key in ("name", "path", "data_dir"))
        return network(told, source(config if same_data else told, "train").num_classes)
    if not path.is_dir():
        raise ValueError(
            f"classifier {folder!r} is no folder; it can be the work directory of a classifier's run, or what hub.load "
            "opens"
        )
    try:
        model, params = hub.load(path, dtype=config.training.compute_dtype)
    except ValueError as error:
        raise ValueError(f"classifier {folder!r} is neither a trained run nor a network: {error}") from error
    if type(model) not in CLASSIFIERS.values():
        raise ValueError(f"classifier {folder!r} holds {type(model).__name__}, which is no classifier of noisy images")
    channels = params["conv_in"]["kernel"].shape[2]
    if channels != config.data.channels:
        raise ValueError(
            f"classifier {folder!r} reads {channels} channels, but config.data.channels is {config.data.channels}"
        )
    classifier: Any = model
    classifier.validate(config.data.image_size, channels)
    return model


def optimization(config: config_dict.ConfigDict) -> tuple[optax.GradientTransformation, optimizer.Schedule, ema.Decay]:
    """The optimiser, its learning rate as a function of the step, and the decay of the moving average."""
    with section("optimizer"):
        update, rate = optimizer.make_optimizer(
            num_steps=config.training.num_steps, batch_size=config.training.batch_size, **config.optimizer
        )
    if NETWORKS[config.model.name] is EDM2UNet:  # learnt as directions (Karras et al. 2024, eq. 66)
        update = optimizer.projected(update, normalize_weights)
    with section("ema"):
        decay = ema.make_ema(batch_size=config.training.batch_size, **config.ema)
    return update, rate, decay


def posthoc_ema(config: config_dict.ConfigDict) -> power_ema.PosthocEMA | None:
    """The averages that are kept for `config.sampling.ema_width`; None for none."""
    with section("posthoc_ema"):
        kept = power_ema.PosthocEMA(tuple(config.posthoc_ema.sigma_rels), config.posthoc_ema.snapshot_every)
        return kept if kept.snapshot_every else None


def image_keys(config: config_dict.ConfigDict, indices: jax.Array) -> jax.Array:
    """One PRNG key [N] for each image of a sampling run: a function of (seed, index) alone."""
    base = jax.random.fold_in(jax.random.key(config.seed), 0x5A)
    return jax.vmap(jax.random.fold_in, (None, 0))(base, indices)
