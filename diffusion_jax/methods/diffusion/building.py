"""From a checked config to the diffusion model that it describes. Whatever cannot be is a ValueError, in one line."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flax import linen as nn

from diffusion_jax.conditions.condition import Condition, Conditions
from diffusion_jax.conditions.registry import CONDITIONS
from diffusion_jax.data.source import LABEL
from diffusion_jax.diffusion import samplers
from diffusion_jax.diffusion.objective import Objective
from diffusion_jax.diffusion.preconditioning import PRECONDITIONINGS
from diffusion_jax.diffusion.process import DiscreteProcess, Process
from diffusion_jax.diffusion.time_sampler import LossSecondMoment
from diffusion_jax.methods.augmentation import NUM_LABELS, Augmentation
from diffusion_jax.methods.diffusion.guiding import Guidance
from diffusion_jax.methods.method import Config, Context
from diffusion_jax.models.registry import CLASSIFIERS
from diffusion_jax.options import parameters


def told(config: Config, context: Context) -> dict[str, Condition]:
    """The conditions that the network is told, by name, as the training data have them."""
    with config.method.errors():
        return {name: CONDITIONS[name].of(context.train()) for name in names(config)}


def names(config: Config) -> tuple[str, ...]:
    """Of the conditions that the network is told."""
    settings = config.method
    labels = (LABEL,) if settings.class_conditional else ()
    return tuple(dict.fromkeys((*labels, *settings.conditions)))


def _listed(conditions: Iterable[str]) -> str:
    return ", ".join(conditions) or "nothing"


def network(config: Config, conditions: Conditions) -> nn.Module:
    """The denoising network, checked against the image size and what it is told."""
    options: dict[str, Any] = {"num_classes": None}
    for condition in conditions.values():
        options |= condition.network_options
    with config.model.errors():
        taken = inspect.signature(config.model.constructor.__call__).parameters
        for name, condition in conditions.items():
            if condition.argument not in taken:
                raise ValueError(
                    f"name is {config.model.name!r}, a network that cannot be told the condition {name!r}: it takes no "
                    f"{condition.argument}"
                )
        model: Any = config.model.build(
            **_attention(config),
            **options,
            dtype=config.training.compute_dtype,
            null_class=config.method.label_dropout > 0,
            out_channels=config.data.channels * (1 if config.method.bound == "none" else 2),
        )
        model.validate(config.data.image_size, config.data.channels)
        if config.method.adaptive_weighting and not hasattr(model, "log_variance"):
            raise ValueError(
                f"config.method.adaptive_weighting is True, but {config.model.name!r} learns no weighting; "
                "config.model.name 'edm2_unet' does"
            )
    return model


def _attention(config: Config) -> dict[str, Any]:
    """Where a network attends unless that was set: at those of its constructor's resolutions that the images have."""
    model, size = config.model, config.data.image_size
    if "attention_resolutions" not in model or "attention_resolutions" in model.given:
        return {}
    levels = [size >> level for level in range(len(model.channel_mults))]
    return {"attention_resolutions": tuple(size for size in model.attention_resolutions if size in levels)}


def process(config: Config) -> Process:
    """The forward process."""
    with config.process.errors():
        return config.process.build()


def objective(config: Config, chain: Process) -> Objective:
    """The loss on the network's raw output."""
    with config.weighting.errors():
        weighting = config.weighting.build()
    times = time_sampler(config, chain)
    with config.method.errors():
        return Objective(chain, config.method.prediction, weighting, config.method.bound, times)


def time_sampler(config: Config, chain: Process) -> LossSecondMoment | None:
    """How times are drawn, where not as the process says."""
    section = config.time_sampler
    with section.errors():
        if "num_timesteps" not in parameters(section.constructor):
            return section.build()
        if not isinstance(chain, DiscreteProcess):
            raise ValueError(f"{section.name!r} needs a discrete process, such as linear or cosine")
        return section.build(num_timesteps=chain.num_timesteps)


def sampler(config: Config, chain: Process) -> samplers.Sampler | samplers.AdaptiveSampler:
    """The table of sampling steps."""
    with config.sampling.errors():
        _check_sampled(config, chain)
        table = config.sampling.build(process=chain, prediction=config.method.prediction)
        if table.learned_variance and config.method.bound == "none":
            raise ValueError(
                "variance is 'learned_range', but config.method.bound is 'none': the network learns a variance with "
                "bound 'hybrid', 'hybrid_unscaled' or 'vlb'"
            )
        return table


def _check_sampled(config: Config, chain: Process) -> None:
    """Some samplers are for chains and for what a network says of the noise there."""
    if typing.get_type_hints(config.sampling.constructor).get("process") is not DiscreteProcess:
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


def augmentation(config: Config) -> Augmentation | None:
    """What is done to training images; None for nothing."""
    if "augmentation" not in config:
        return None
    with config.augmentation.errors():
        chosen: Augmentation = config.augmentation.build()
        if not chosen.probability:
            return None
        if config.model.get("augment_dim") != NUM_LABELS:
            raise ValueError(
                f"probability is {chosen.probability}, which needs a network that is told of transforms: "
                f"config.model.name 'edm_unet' with config.model.augment_dim {NUM_LABELS}"
            )
        return chosen


def guidance(config: Config, conditions: Conditions, context: Context) -> Guidance:
    """What the guidance scale acts on; the guide's config is read from its work directory."""
    sampling = config.sampling
    with sampling.errors():
        guide, is_conditional = None, False
        if sampling.guide:
            other = guide_config(config, context)
            is_conditional = other.method.class_conditional or bool(other.method.conditions)
            if is_conditional and set(names(other)) != conditions.keys():
                raise ValueError(
                    f"guide {sampling.guide!r} is told {_listed(names(other))}, but the network that it guides "
                    f"{_listed(conditions)}"
                )
            guide = network(other, conditions if is_conditional else {})
        return Guidance(
            sampling.guidance_interval,
            sampling.guidance_rescale,
            sampling.guidance_channels,
            guide,
            is_conditional,
            guiding_classifier(config, context),
        )


def guide_config(config: Config, context: Context) -> Config:
    """The config of the run that guides. Raises ValueError where its network cannot."""
    same = ["method.prediction", *(f"latents.{key}" for key in ("mean", "std", "final_std") if "latents" in config)]
    return _config_of_guide(config, "guide", same, context)


def _config_of_guide(config: Config, field: str, same: Sequence[str], context: Context) -> Config:
    """The config of the run that a field of `sampling` names; it has the same images, process and `same` fields."""
    folder = config.sampling[field]
    try:
        told = context.read_config(Path(folder).expanduser())
    except ValueError as error:
        raise ValueError(f"{field} {folder!r} is no work directory of a run: {error}") from error
    for path in ("data.image_size", "data.channels", *(f"process.{key}" for key in config.process), *same):
        section, _, key = path.partition(".")
        here, there = (each[section].get(key) if section in each else None for each in (config, told))
        if here != there:
            raise ValueError(f"{field} {folder!r} was trained with {path} {there!r}, but here it is {here!r}")
    return told


def guiding_classifier(config: Config, context: Context) -> nn.Module | None:
    """The classifier that guides; None without one. Raises ValueError where it cannot.

    Of a folder that is no run, but a network that `hub.load` opens, the process is not known and so not compared.
    """
    folder = config.sampling.classifier
    if not folder:
        return None
    path = Path(folder).expanduser()
    if (path / "checkpoints").is_dir():
        told = _config_of_guide(config, "classifier", (), context)
        if told.model.name not in CLASSIFIERS:
            raise ValueError(f"classifier {folder!r} is a run of method {told.method.name!r}, not of a classifier")
        if not any(child.name.isdigit() for child in (path / "checkpoints").iterdir()):
            raise ValueError(f"classifier {folder!r} has no checkpoint; train it first")
        same_data = all(told.data[key] == config.data[key] for key in ("name", "path", "data_dir"))
        classes = context.num_classes if same_data else context.count_classes(told)
        return told.model.build(num_classes=classes, dtype=told.training.compute_dtype)
    if not path.is_dir():
        raise ValueError(
            f"classifier {folder!r} is no folder; it can be the work directory of a classifier's run, or what hub.load "
            "opens"
        )
    try:
        model, params = context.load(path, dtype=config.training.compute_dtype)
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
