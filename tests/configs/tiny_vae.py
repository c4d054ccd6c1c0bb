"""The digits' variational autoencoder in miniature, with two latents, whose plane can be shown."""

from configs import digits_vae


def get_config():
    config = digits_vae.get_config()
    config.name = "tiny_vae"
    config.model.update({"width": 16, "depth": 1, "latent_size": 2})
    config.training.update({"batch_size": 16, "num_steps": 20, "log_every": 10, "checkpoint_every": 10})
    config.optimizer.warmup_steps = 5
    config.sampling.update({"num_images": 20, "batch_size": 24, "num_frames": 4})
    config.evaluation.update({"num_images": 40, "classifier_steps": 5, "num_likelihood_images": 10})
    config.evaluation.importance_samples = 4
    return config
