"""Any folder of images: class folders become labels, otherwise the model is unconditional.

    ./launch/local.sh --config configs/image_folder.py:cpu --config.data.path=DIR
    ./launch/local.sh --config configs/image_folder.py --config.data.path=DIR
    ./launch/local.sh --config configs/image_folder.py --config.data.path=DIR --config.method.class_conditional=True

The size behind the colon is that of the machine:

    gpu   for one accelerator: DDPM's network and training for CIFAR-10 (Ho et al. 2020, appendix B), 32x32 pixels,
          200,000 updates. This is the default.
    cpu   for a laptop: 16x16 pixels and a small network, 3,000 updates; the whole command took 11 minutes on two cores
          that were busy with other work, on a folder of 110 logos.

For larger images raise `config.data.image_size`, and give `config.model.channel_mults` one more entry a doubling, so
that the lowest resolution stays at 4 to 8 pixels.
"""

from diffusion_jax import config as experiment

SIZES = ("gpu", "cpu")


def get_config(size: str = "gpu"):
    if size not in SIZES:
        raise ValueError(f"configs/image_folder.py:{size} does not exist; behind the colon can be {' or '.join(SIZES)}")
    config = experiment.default()
    config.name = "image_folder"

    config.data.name = "image_folder"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.flip = True

    config.model.name = "unet"
    config.model.channels = 128
    config.model.channel_mults = (1, 2, 2, 2)
    config.model.num_res_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.1

    config.process.name = "linear"
    config.method.prediction = "epsilon"

    config.optimizer.learning_rate = 2e-4
    config.optimizer.warmup_steps = 5000
    config.ema.kind = "warmup"
    config.training.batch_size = 128
    config.training.num_steps = 200_000
    config.training.log_every = 100
    config.training.checkpoint_every = 2000

    config.sampling.name = "ddim"
    config.sampling.num_steps = 50
    config.sampling.spacing_rule = "quadratic"
    config.sampling.num_images = 64
    config.sampling.batch_size = 64
    config.sampling.every = 2000

    config.evaluation.num_images = 2048
    if size == "cpu":
        _for_cpu(config)
    return config


def _for_cpu(config) -> None:
    config.name = "image_folder_cpu"
    config.data.image_size = 16
    config.model.channels = 32
    config.model.channel_mults = (1, 2)
    config.model.num_res_blocks = 1
    config.model.attention_resolutions = (8,)
    config.model.norm_groups = 8
    config.model.dropout = 0.0

    config.process.name = "cosine"
    config.method.prediction = "v"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.schedule = "cosine"
    config.ema.decay = 0.998
    config.training.batch_size = 32
    config.training.num_steps = 3000
    config.training.checkpoint_every = 500

    config.sampling.spacing_rule = "trailing"
    config.sampling.num_images = 36
    config.sampling.batch_size = 36
    config.sampling.every = 0
    config.evaluation.num_images = 180
    config.evaluation.max_reference_images = 1000
