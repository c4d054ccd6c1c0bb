"""The default job in miniature, with everything that can be scored: in training, at the end and in a sweep."""

from tests.configs import tiny


def get_config():
    config = tiny.get_config()
    config.name = "scored"
    config.model.width = 64  # enough for parameters to be split
    config.training.num_steps = 10
    config.training.log_every = 5
    config.sampling.num_steps = 2
    config.evaluation.num_likelihood_images = 3  # fewer than devices can share
    config.evaluation.classifier_steps = 10
    config.evaluation.max_reference_images = 150
    config.evaluation.scored_images = 40
    config.evaluation.metrics = ("fid", "kid", "prc", "dc", "fid-infinity")
    config.evaluation.every = 5
    config.evaluation.keep_best = "kid"
    config.evaluation.sweep_steps = (2,)
    return config
