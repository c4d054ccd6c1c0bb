"""Handwritten digits by a variational autoencoder that is told the class (Kingma and Welling 2014).

./launch/local.sh --config configs/digits_vae.py
"""

from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "digits_vae"

    config.data.name = "digits"
    config.data.image_size = 8
    config.data.channels = 1

    config.method.name = "variational_autoencoder"
    config.method.class_conditional = True

    config.model.name = "mlp"
    config.model.width = 384
    config.model.depth = 2
    config.model.latent_size = 4
    config.model.dropout = 0.1

    config.likelihood.name = "discretised_logistic"
    config.likelihood.levels = 17

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

    config.sampling.draw = "sample"
    config.sampling.num_images = 100
    config.sampling.batch_size = 256

    config.evaluation.num_images = 1024
    config.evaluation.num_likelihood_images = 359
    return config
