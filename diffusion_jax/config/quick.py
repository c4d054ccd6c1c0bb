"""`config.quick`: the same experiment in miniature: trained, sampled, scored and reported in a minute on two cores.

What is proved by a quick run is that the pieces of an experiment fit together, so every kind of piece stays: process,
prediction, objective, network class with its options, optimiser, moving average, sampler, guidance. What
shrinks is how much there is of each, and the data are the digits that come with scikit-learn.
"""

from __future__ import annotations

from collections.abc import Sequence

from ml_collections import config_dict

from diffusion_jax.config import options
from diffusion_jax.models.registry import NETWORKS

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

# Fields of networks that say how large they are. Unset ones are set too: the defaults are a paper's.
_NETWORK = {"channels": 8, "num_res_blocks": 1, "norm_groups": 4, "width": 32, "depth": 2, "num_heads": 2}
# Heads of EDM's ADM network have 64 channels, whatever the others have.
_ADM_HEAD_CHANNELS = 64


def run_name(config: config_dict.ConfigDict) -> str:
    """The config's name, by which a quick run is told from the whole one."""
    return config.name + SUFFIX if config.quick and not config.name.endswith(SUFFIX) else config.name


def shrink(config: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """A small copy of a checked config. What is smaller already stays so: shrinking twice is shrinking once."""
    small = config.copy_and_resolve_references()
    with small.unlocked(), small.ignore_type():
        small.name = run_name(config)
        _shrink_network(small)
        small.data.update({"name": "digits", "path": None, "data_dir": None, "num_workers": 0})
        if small.method.name == "latent_diffusion":
            small.data.name = "haar_digits"
            small.latents.update({"mean": None, "std": None, "vae": None, "unit_range": False})
        if small.optimizer.warmup_images is not None:
            small.optimizer.warmup_images = min(small.optimizer.warmup_images, NUM_STEPS // 4 * BATCH_SIZE)
        small.optimizer.warmup_steps = min(small.optimizer.warmup_steps, NUM_STEPS // 4)
        training, sampling = small.training, small.sampling
        if small.posthoc_ema.snapshot_every is not None:
            small.posthoc_ema.snapshot_every = min(small.posthoc_ema.snapshot_every, NUM_STEPS // 2)
        training.batch_size = min(training.batch_size, BATCH_SIZE)
        training.num_steps = min(training.num_steps, NUM_STEPS)
        training.log_every = min(training.log_every, NUM_STEPS // 4)
        training.checkpoint_every = min(training.checkpoint_every, NUM_STEPS)
        sampling.num_steps = min(sampling.num_steps or SAMPLING_STEPS, SAMPLING_STEPS)
        for field in ("num_images", "batch_size"):
            sampling[field] = min(sampling[field], BATCH_SIZE)
        sampling.num_frames = min(sampling.num_frames, SAMPLING_STEPS)
        small.evaluation.num_images = min(small.evaluation.num_images, NUM_IMAGES)
        small.evaluation.max_reference_images = min(small.evaluation.max_reference_images, 10 * NUM_IMAGES)
        small.evaluation.every = min(small.evaluation.every, NUM_STEPS // 2)
        small.evaluation.scored_images = min(small.evaluation.scored_images, NUM_IMAGES)
        small.evaluation.update({"features": None, "weights": None, "reference": None, "metrics": ("fid",)})
        small.evaluation.keep_best = small.evaluation.keep_best and "fid"
        small.evaluation.sweep_steps = tuple(min(steps, SAMPLING_STEPS) for steps in small.evaluation.sweep_steps)
        small.evaluation.classifier_steps = min(small.evaluation.classifier_steps or CLASSIFIER_STEPS, CLASSIFIER_STEPS)
    return small


def _shrink_network(config: config_dict.ConfigDict) -> None:
    """Fewer channels, blocks and levels, with attention where it was: at the full size, or below it."""
    model, before = config.model, config.data.image_size
    fields = options.parameters(NETWORKS[model.name])
    for field, value in _NETWORK.items():
        if field in fields:
            model[field] = value if model[field] is None else min(model[field], value)
    size = IMAGE_SIZE
    if "channel_mults" in fields:
        mults = tuple(model.channel_mults or fields["channel_mults"].default)
        if "num_res_blocks" in fields and len(mults) > NUM_LEVELS:
            mults = (mults[0], min(mults[-1], _LARGEST_MULT))
        if model.name == "edm_unet" and model.family == "adm":
            model.channels, mults = _ADM_HEAD_CHANNELS, (1,) * len(mults)
        if "num_res_blocks" in fields:
            model.channel_mults = mults
        size = max(size, 2 ** (len(mults) - 1))
    size = min(size, before)
    if "attention_resolutions" in fields:
        given: Sequence[int] = model.attention_resolutions or fields["attention_resolutions"].default
        # With two levels of many: at the upper one if it was there, at the lower one if it was at any below.
        full = model.image_size or before
        model.attention_resolutions = tuple(sorted({size if r >= full else size // 2 for r in given}, reverse=True))
        model.image_size = None
    if "head_channels" in fields and (heads := model.head_channels or fields["head_channels"].default):
        model.head_channels = min(heads, model.channels)
    config.data.image_size = size
