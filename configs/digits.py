"""Handwritten digits, 8x8: a class-conditional diffusion model in minutes on two CPU cores.

./launch/local.sh --config configs/digits.py
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "digits"

    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1

    # Dense products are what XLA runs fast on a CPU, see the README.
    config.model.name = "mlp"
    config.model.width = 384
    config.model.depth = 3
    config.model.dropout = 0.1

    config.process.name = "cosine"
    config.method.prediction = "v"
    config.method.class_conditional = True
    config.method.label_dropout = 0.1

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.schedule = "cosine"
    config.ema.kind = "warmup"
    config.ema.decay = 0.998
    config.training.batch_size = 128
    config.training.num_steps = 3000
    config.training.log_every = 100
    config.training.checkpoint_every = 1000

    config.sampling.name = "ddim"
    config.sampling.num_steps = 50
    config.sampling.spacing_rule = "trailing"
    config.sampling.guidance_scale = 1.25
    config.sampling.num_images = 100
    config.sampling.batch_size = 256

    config.evaluation.num_images = 1024
    return config
