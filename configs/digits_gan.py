"""Handwritten digits, 8x8: a class-conditional generative adversarial network in minutes on two CPU cores.

./launch/local.sh --config configs/digits_gan.py
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "digits_gan"
    config.method.name = "gan"

    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1

    # R3GAN's loss with both of its penalties, in every update.
    config.method.class_conditional = True
    config.method.game = "relativistic"
    config.method.r1 = 2.0
    config.method.r2 = 2.0

    config.generator.name = "mlp"
    config.generator.latent_dim = 32
    config.generator.width = 256
    config.generator.depth = 3
    config.discriminator.name = "mlp"
    config.discriminator.width = 256
    config.discriminator.depth = 3

    for optimizer in (config.optimizer, config.discriminator_optimizer):
        optimizer.name = "adam"
        optimizer.learning_rate = 1e-3
        optimizer.schedule = "cosine"
        optimizer.b1 = 0.0
        optimizer.b2 = 0.99
        optimizer.clip_norm = None
    config.ema.kind = "warmup"
    config.ema.decay = 0.998
    config.training.batch_size = 128
    config.training.num_steps = 6000
    config.training.log_every = 100
    config.training.checkpoint_every = 2000

    config.sampling.num_images = 100
    config.sampling.batch_size = 256

    config.evaluation.num_images = 1024
    return config
