"""The default experiment: every field that exists, with its type and its default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import config_dict

from diffusion_jax import data
from diffusion_jax.config.options import Registry, named_section, plain_section
from diffusion_jax.diffusion.process import PROCESSES
from diffusion_jax.diffusion.samplers import SAMPLERS
from diffusion_jax.diffusion.time_sampler import TIME_SAMPLERS
from diffusion_jax.diffusion.weighting import WEIGHTINGS
from diffusion_jax.methods.augmentation import Augmentation
from diffusion_jax.methods.latents import LatentSpace
from diffusion_jax.models.registry import NETWORKS
from diffusion_jax.training import ema, optimizer, power_ema

# Sections whose `name` picks a constructor, and the arguments of it that follow from the rest of the config.
NAMED_SECTIONS: dict[str, tuple[Registry, tuple[str, ...]]] = {
    "model": (NETWORKS, ("out_channels", "num_classes", "null_class", "dtype")),
    "process": (PROCESSES, ()),
    "weighting": (WEIGHTINGS, ()),
    "time_sampler": (TIME_SAMPLERS, ("num_timesteps",)),
    "sampling": (SAMPLERS, ("process", "prediction")),
}
# Sections that are the arguments of one constructor, and those of them that follow from the rest.
PLAIN_SECTIONS: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "data": (data.load_source, ("split",)),
    "latents": (LatentSpace, ()),
    "augmentation": (Augmentation, ()),
    "optimizer": (optimizer.make_optimizer, ("num_steps", "batch_size")),
    "ema": (ema.make_ema, ("batch_size",)),
    "posthoc_ema": (power_ema.PosthocEMA, ()),
}
# Fields of named sections that belong to the job and not to the constructor.
SHARED_FIELDS = {
    "sampling": (
        *("guidance_scale", "guidance_interval", "guidance_rescale", "guidance_channels"),
        *("guide", "guide_step", "guide_ema_width", "classifier", "classifier_scale"),
        *("ema_width", "num_images", "batch_size", "num_frames"),
    )
}


def default() -> config_dict.ConfigDict:
    """A new config with every field at its default; experiments change what differs."""
    config = config_dict.ConfigDict()
    config.name = "experiment"  # also names the default work directory, runs/<name>
    config.seed = 0  # of everything that is drawn
    config.quick = False  # the whole experiment in miniature, to see it run: diffusion_jax/config/quick.py

    config.debug = False  # stop at the first value that is not a number and say where it came from; deterministic GPUs

    config.data = plain_section(*PLAIN_SECTIONS["data"])
    config.data.name = "digits"  # digits, image_folder, latents, or tfds:<dataset>
    config.data.flip = False  # random horizontal flips
    config.data.num_workers = 0  # processes that decode images; 0 decodes in threads of the main one

    config.latents = plain_section(
        *PLAIN_SECTIONS["latents"]
    )  # of latent_diffusion; mean and std unset: those of the data's channels
    config.latents.vae = config_dict.placeholder(str)  # folder of the autoencoder; unset: that of the data

    config.model = named_section(NETWORKS, "unet", NAMED_SECTIONS["model"][1])
    config.process = named_section(PROCESSES, "linear")
    config.weighting = named_section(WEIGHTINGS, "simple")
    config.time_sampler = named_section(TIME_SAMPLERS, "process", NAMED_SECTIONS["time_sampler"][1])

    config.method = config_dict.ConfigDict()
    config.method.name = "diffusion"  # or latent_diffusion, whose data are latents; or classifier, of noisy images
    config.method.prediction = "epsilon"  # of the network: sample, v, score, velocity; or EDM's edm, vp, ve, iddpm
    config.method.bound = "none"  # hybrid, hybrid_unscaled and vlb also learn the variance (improved DDPM)
    config.method.class_conditional = False  # the network is told the classes of the data
    config.method.label_dropout = 0.1  # share of labels dropped in training, for classifier-free guidance
    config.method.coupling = "independent"  # of noise and images; optimal_transport matches them in each whole batch
    config.method.adaptive_weighting = False  # of noise levels, by a loss that the network learns for each (EDM2)
    config.method.least_crop = 1.0  # of a classifier's training images: random crops keep this share of the side
    config.augmentation = plain_section(
        *PLAIN_SECTIONS["augmentation"]
    )  # EDM's, of which the network is told; 0.12 for CIFAR-10

    config.training = config_dict.ConfigDict()
    config.training.batch_size = 128  # over all devices and hosts
    config.training.num_steps = 10_000  # updates
    config.training.accumulation_steps = 1  # parts of the batch, one after the other; 0: by the memory
    config.training.compute_dtype = "float32"  # of activations; parameters stay float32
    config.training.matmul_precision = "highest"  # highest is float32; default lets GPUs use TF32, TPUs bfloat16
    config.training.log_every = 100  # updates between lines of metrics.jsonl
    config.training.checkpoint_every = 1000  # updates between checkpoints
    config.training.max_to_keep = 2  # newest checkpoints, beside the best
    config.training.sanitize_gradients = False  # infinities become large numbers, as in EDM's released code
    config.training.max_bad_steps = 10  # updates in a row that may be left out because they are not finite

    config.optimizer = plain_section(*PLAIN_SECTIONS["optimizer"])
    config.ema = plain_section(*PLAIN_SECTIONS["ema"])
    config.posthoc_ema = plain_section(
        *PLAIN_SECTIONS["posthoc_ema"]
    )  # averages for sampling.ema_width, kept if snapshot_every
    config.mesh = config_dict.ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # devices along each axis; -1: the rest

    config.sampling = named_section(SAMPLERS, "ddim", NAMED_SECTIONS["sampling"][1])
    config.sampling.guidance_scale = 1.0  # 1 is no guidance
    config.sampling.guidance_interval = config_dict.placeholder(tuple)  # (low, high) of sigma / alpha; unset: always
    config.sampling.guidance_rescale = 0.0  # share that keeps the unguided contrast, against overexposure
    config.sampling.guidance_channels = config_dict.placeholder(int)  # only the first so many; unset: all
    config.sampling.guide = config_dict.placeholder(str)  # work directory of a weaker network (autoguidance)
    config.sampling.guide_step = config_dict.placeholder(int)  # one of its EMA snapshots; unset: its newest checkpoint
    config.sampling.guide_ema_width = config_dict.placeholder(float)  # sigma_rel of its average, from its snapshots
    config.sampling.classifier = config_dict.placeholder(str)  # that guides: a run of method classifier, or hub.load's
    config.sampling.classifier_scale = 1.0  # of its gradient; 0 is no guidance by it
    config.sampling.ema_width = config_dict.placeholder(float)  # sigma_rel, from posthoc_ema's snapshots; unset: ema
    config.sampling.num_images = 64  # in samples.png
    config.sampling.batch_size = 64  # over all devices
    config.sampling.num_frames = 32  # states of the reverse process in sampling.gif

    config.evaluation = config_dict.ConfigDict()
    config.evaluation.num_images = 1000  # generated for the scores
    config.evaluation.max_reference_images = 10_000  # of each split, held in memory for the small classifier's scores
    config.evaluation.classifier_steps = config_dict.placeholder(int)  # training of its classifier; unset: by the size
    config.evaluation.num_likelihood_images = 0  # test images whose bits per dimension are estimated
    config.evaluation.checkpoint = "newest"  # or best, which keep_best keeps: what sample and evaluate use
    # Scores in training and in sweeps, of images that never leave the devices: diffusion_jax/jobs/measure.py
    config.evaluation.every = 0  # steps between scores of the moving average in training; 0 takes none
    config.evaluation.scored_images = 512  # generated for each of them
    config.evaluation.metrics = ("fid",)  # as in ./launch/local.sh metrics
    config.evaluation.features = config_dict.placeholder(str)  # inception, ...; unset: a classifier of the data
    config.evaluation.weights = config_dict.placeholder(str)  # file of their weights; unset: installed or cached
    config.evaluation.protocol = config_dict.placeholder(str)  # of Inception's features: tf, adm, edm, ...
    config.evaluation.quantisation = "half_up"  # of generated images for these features: half_up, floor or none
    config.evaluation.reference = config_dict.placeholder(str)  # statistics file; unset: the training images
    config.evaluation.reference_images = config_dict.placeholder(int)  # of them, evenly spaced; unset: all
    config.evaluation.keep_best = config_dict.placeholder(str)  # metric whose best parameters are kept in DIR/best
    config.evaluation.patience = 0  # scores in a row without a better one that end the training; 0: never
    config.evaluation.sweep_samplers = ()  # evaluate also scores each sampler here (unset: sampling.name) with each
    config.evaluation.sweep_steps = ()  # number of steps and
    config.evaluation.sweep_guidance = ()  # each guidance scale
    return config.lock()


def get(config: config_dict.ConfigDict, path: str) -> Any:
    """The value at a dotted path."""
    for part in path.split("."):
        config = config[part]
    return config
