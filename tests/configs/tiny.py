"""The default job in miniature: every stage of it, in seconds."""

from configs import digits


def get_config():
    config = digits.get_config()
    config.name = "tiny"
    config.model.width = 16
    config.model.depth = 1
    config.optimizer.warmup_steps = 5
    config.training.batch_size = 16
    config.training.num_steps = 40
    config.training.log_every = 10
    config.training.checkpoint_every = 20
    config.sampling.num_steps = 4
    config.sampling.num_images = 20
    config.sampling.batch_size = 16
    config.sampling.num_frames = 4
    config.evaluation.num_images = 40
    config.evaluation.num_likelihood_images = 4
    config.process.num_timesteps = 50
    return config
