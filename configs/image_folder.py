"""Any folder of images: class folders become labels, otherwise the model is unconditional.

    ./launch/local.sh --config configs/image_folder.py --config.data.path=DIR
    ./launch/local.sh --config configs/image_folder.py --config.data.path=DIR --config.method.class_conditional=True

The network and its training are DDPM's for CIFAR-10 (Ho et al. 2020, appendix B), which suits 32x32 colour images and
one accelerator. For larger images raise `config.data.image_size` and give `config.model.channel_mults` one more entry a
doubling, so that the lowest resolution stays at 4 to 8 pixels.
"""

from diffusion_jax import config as experiment


def get_config():
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

    config.evaluation.num_images = 2048
    return config
