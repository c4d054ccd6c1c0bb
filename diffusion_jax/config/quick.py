"""`config.quick`: the same experiment in miniature: trained, sampled, scored and reported in a minute on two cores.

What is proved by a quick run is that the pieces of an experiment fit together, so every kind of piece stays: process,
prediction, objective, network class with its options, optimiser, moving average, sampler, guidance. What
shrinks is how much there is of each. The data are the digits that come with scikit-learn, unless the config or the
command says where others are; and what the command line sets stays as it is set.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffusion_jax.config.build import method_of
from diffusion_jax.config.experiment import Experiment
from diffusion_jax.data.sources import LATENT_SOURCES

SUFFIX = "_quick"
NUM_STEPS = 20
SAMPLING_STEPS = 4
BATCH_SIZE = 16
NUM_IMAGES = 32
CLASSIFIER_STEPS = 100
# The digits are 8x8 pixels, or a multiple.
IMAGE_SIZE = 8
# Of a U-Net: nearly all of the time goes into compiling, and so by the number of its blocks.
NUM_LEVELS = 2
_LARGEST_MULT = 2

# Fields of networks that say how large they are.
_NETWORK = {"channels": 8, "num_res_blocks": 1, "norm_groups": 4, "width": 32, "depth": 2, "num_heads": 2}
# Heads of EDM's ADM network have 64 channels, whatever the others have.
_ADM_HEAD_CHANNELS = 64
# At most so much of each, where the method has the field.
_MOST: dict[str, int] = {
    "training.batch_size": BATCH_SIZE,
    "training.num_steps": NUM_STEPS,
    "training.log_every": NUM_STEPS // 4,
    "training.checkpoint_every": NUM_STEPS,
    "optimizer.warmup_images": NUM_STEPS // 4 * BATCH_SIZE,
    "optimizer.warmup_steps": NUM_STEPS // 4,
    "posthoc_ema.snapshot_every": NUM_STEPS // 2,
    "sampling.num_images": BATCH_SIZE,
    "sampling.batch_size": BATCH_SIZE,
    "sampling.num_frames": SAMPLING_STEPS,
    "evaluation.num_images": NUM_IMAGES,
    "evaluation.max_reference_images": 10 * NUM_IMAGES,
    "evaluation.every": NUM_STEPS // 2,
    "evaluation.scored_images": NUM_IMAGES,
}
# Where None is more than a miniature has.
_NOT_NONE = {"sampling.num_steps": SAMPLING_STEPS, "evaluation.classifier_steps": CLASSIFIER_STEPS}


def run_name(config: Experiment) -> str:
    """The config's name, by which a quick run is told from the whole one."""
    return config.name + SUFFIX if config.quick and not config.name.endswith(SUFFIX) else config.name


def shrink(config: Experiment) -> Experiment:
    """A small copy of a checked config. What is smaller already stays so: shrinking twice is shrinking once."""
    small = config.copy_and_resolve_references()
    small.name = run_name(config)
    if "model" in small:
        _shrink_network(small)
    if small.data.path is None:
        small.data.update({"name": "digits", "data_dir": None, "num_workers": 0})
    method_of(small).shrink(small)
    for path, most in _MOST.items():
        _lower(small, path, lambda value, most=most: None if value is None else min(value, most))
    for path, most in _NOT_NONE.items():
        _lower(small, path, lambda value, most=most: min(value or most, most))
    for path, value in {"features": None, "weights": None, "reference": None, "metrics": ("fid",)}.items():
        _lower(small, f"evaluation.{path}", lambda _, value=value: value)
    _lower(small, "evaluation.keep_best", lambda metric: metric and "fid")
    _lower(small, "evaluation.sweep_steps", lambda all_: tuple(min(steps, SAMPLING_STEPS) for steps in all_))
    for path in config.commanded:
        section, _, field = path.rpartition(".")
        (small[section] if section else small)[field] = (config[section] if section else config)[field]
    if "name" not in config.commanded:
        small.name = run_name(config)
    return small


def _lower(config: Experiment, path: str, change: Callable[[Any], Any]) -> None:
    section, _, field = path.partition(".")
    if section in config and field in config[section]:
        config[section][field] = change(config[section][field])


def _shrink_network(config: Experiment) -> None:
    """Fewer channels, blocks and levels, with attention where it was: at the full size, or below it."""
    model, before = config.model, int(config.data.image_size or IMAGE_SIZE)
    for field, value in _NETWORK.items():
        if field in model:
            model[field] = min(model[field], value)
    size = IMAGE_SIZE
    if "channel_mults" in model:
        mults = tuple(model.channel_mults)
        if "num_res_blocks" in model and len(mults) > NUM_LEVELS:
            mults = (mults[0], min(mults[-1], _LARGEST_MULT))
        if model.get("family") == "adm":
            model.channels, mults = _ADM_HEAD_CHANNELS, (1,) * len(mults)
        if "num_res_blocks" in model:
            model.channel_mults = mults
        size = max(size, 2 ** (len(mults) - 1))
    stored = config.data.path is not None and config.data.name in LATENT_SOURCES  # at the size that they have
    size = before if stored else min(size, before)
    if "attention_resolutions" in model:
        given: Sequence[int] = model.attention_resolutions
        # With two levels of many: at the upper one if it was there, at the lower one if it was at any below.
        full = model.image_size or before
        model.attention_resolutions = tuple(sorted({size if r >= full else size // 2 for r in given}, reverse=True))
        model.image_size = None
    if model.get("head_channels"):
        model.head_channels = min(model.head_channels, model.channels)
    config.data.image_size = size
