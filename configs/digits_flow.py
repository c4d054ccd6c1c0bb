"""Handwritten digits, 8x8: a class-conditional normalising flow, Glow, in minutes on two CPU cores.

./launch/local.sh --config configs/digits_flow.py
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "digits_flow"

    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1

    config.method.name = "flow"
    config.method.class_conditional = True
    # What the digits were scanned with; 256 would spend the flow's effort on the gaps between them.
    config.method.pixel_levels = 17

    config.model.name = "glow"
    # Dense products are what XLA runs fast on a CPU.
    config.model.coupling = "dense"
    config.model.levels = 1
    config.model.depth = 12
    config.model.width = 256
    config.model.dropout = 0.1

    config.optimizer.name = "adam"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 100
    config.optimizer.schedule = "cosine"
    config.ema.kind = "warmup"
    config.ema.decay = 0.998
    config.training.batch_size = 128
    config.training.num_steps = 3000
    config.training.log_every = 100
    config.training.checkpoint_every = 1000

    config.sampling.num_images = 100
    config.sampling.batch_size = 256

    config.evaluation.num_images = 1024
    config.evaluation.num_likelihood_images = 359
    return config
