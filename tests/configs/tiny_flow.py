"""The digits' flow in miniature."""

from configs import digits_flow


def get_config():
    config = digits_flow.get_config()
    config.name = "tiny_flow"
    config.model.update({"width": 8, "depth": 2})
    config.training.update({"batch_size": 16, "num_steps": 20, "log_every": 10, "checkpoint_every": 10})
    config.optimizer.warmup_steps = 5
    config.sampling.update({"num_images": 20, "batch_size": 24, "num_frames": 4})
    config.evaluation.update({"num_images": 40, "classifier_steps": 5, "num_likelihood_images": 10})
    return config
