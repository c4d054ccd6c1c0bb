"""The digits' game in miniature, with every kind of turn, and augmentation that adapts."""

from configs import digits_gan


def get_config():
    config = digits_gan.get_config()
    config.name = "tiny_gan"
    config.method.update({"r2": 0.0, "penalties_every": 2, "path_length": 0.1, "generator_every": 2})
    config.generator.update({"width": 16, "depth": 1, "latent_dim": 4})
    config.discriminator.update({"width": 16, "depth": 1})
    config.augmentation.update({"target": 0.0, "speed_images": 6400})
    # Of colours alone: what moves pixels takes long to compile.
    config.augmentation.update(dict.fromkeys(("flip_x", "scale", "rotation", "anisotropy", "translation"), 0.0))
    config.training.update({"batch_size": 16, "num_steps": 160, "log_every": 10, "checkpoint_every": 40})
    config.sampling.update({"num_images": 20, "batch_size": 24, "num_frames": 4})
    config.evaluation.update({"num_images": 40, "classifier_steps": 5})
    return config
