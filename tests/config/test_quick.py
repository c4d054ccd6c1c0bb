"""config.quick: what it keeps, and that it has a small version of every network."""

import pytest

from configs import digits, image_folder
from configs.papers import dit_imagenet256, edm2_imagenet512
from diffusion_jax import config as experiment
from diffusion_jax.conditions.label import Label
from diffusion_jax.config import build
from diffusion_jax.methods.diffusion import building
from diffusion_jax.models.registry import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_every_network_has_a_small_version(name):
    config = experiment.default()
    config.model.name = name
    config.data.image_size = 64
    config.quick = True
    small = experiment.shrink(config)
    experiment.check(small, num_devices=1)
    building.network(small, {"label": Label(10)})  # refuses fields and images that do not fit
    assert small.data.name == "digits" and small.data.image_size <= 32
    assert build.source(small, "train").image_shape == (small.data.image_size, small.data.image_size, 3)


def test_what_is_smaller_already_stays():
    config = digits.get_config()
    config.quick = True
    config.training.num_steps = 7
    config.sampling.num_steps = 2
    config.sampling.num_images = 3
    config.model.width = 8
    small = experiment.shrink(config)
    assert (small.training.num_steps, small.sampling.num_steps, small.sampling.num_images) == (7, 2, 3)
    assert (small.model.width, small.data.image_size, small.data.channels) == (8, 8, 1)
    assert config.training.batch_size == 128  # the config that was given stays what it was


def test_the_users_data_stay_and_what_the_command_line_sets():
    config = image_folder.get_config()
    set_fields = ["--config.quick", "--config.data.path=photos", "--config.training.num_steps=60"]
    experiment.override(config, [*set_fields, "--config.data.image_size=16", "--config.name=mine"])
    small = experiment.shrink(config)
    assert (small.data.name, small.data.path, small.data.image_size) == ("image_folder", "photos", 16)
    assert small.training.num_steps == 60 and small.training.log_every == 5 and small.name == "mine"
    without = image_folder.get_config()
    experiment.override(without, ["--config.quick"])
    assert experiment.shrink(without).data.name == "digits"


def test_stored_latents_keep_their_size():
    for papers in (dit_imagenet256, edm2_imagenet512):
        config = papers.get_config()
        size = config.data.image_size
        experiment.override(config, ["--config.quick", "--config.data.path=latents"])
        small = experiment.shrink(config)
        assert (small.data.name, small.data.path, small.data.image_size) == ("latents", "latents", size)
        assert small.latents.std == config.latents.std
        building.network(small, {"label": Label(10)})  # refuses fields and images that do not fit


def test_a_quick_run_has_a_name_and_so_a_directory_of_its_own():
    config = digits.get_config()
    assert experiment.run_name(config) == "digits"
    config.quick = True
    assert experiment.run_name(config) == "digits_quick"
    assert experiment.run_name(experiment.shrink(config)) == "digits_quick"
