"""A run on latents that the command encode wrote, decoded by the autoencoder that made them: from images to images."""

import functools
import json

import jax
import numpy as np
import pytest

from diffusion_jax import config as experiment
from diffusion_jax import data, hub
from diffusion_jax.config import ConfigError
from diffusion_jax.jobs import run, table
from diffusion_jax.jobs.session import Session
from diffusion_jax.training import sharding


@pytest.fixture
def one_device(monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:1]))


def config_for(made):
    config = experiment.default()
    config.name = "latents"
    config.method.name = "latent_diffusion"
    config.data.update({"name": "latents", "path": str(made[0]), "image_size": 4, "channels": 4})
    config.method.class_conditional = True
    config.model.name = "dit"
    config.model.update({"width": 16, "depth": 1, "num_heads": 2})
    config.training.update({"batch_size": 8, "num_steps": 4, "log_every": 2, "checkpoint_every": 4})
    config.sampling.update({"num_steps": 2, "num_images": 4, "batch_size": 4, "num_frames": 2, "guidance_scale": 1.5})
    config.sampling.guidance_channels = 3
    config.evaluation.update({"num_images": 8, "classifier_steps": 2})
    return config


@pytest.mark.usefixtures("one_device")
def test_images_come_out_that_the_autoencoder_decodes(made, tmp_path):
    config = config_for(made)
    assert run.run(config, tmp_path, table.WHOLE_RUN, command="") == 0
    for product in (name for job in table.WHOLE_RUN for name in table.JOBS[job].leaves):
        assert (tmp_path / product).exists(), product
    assert json.loads((tmp_path / "evaluation.json").read_text())["protocol"]["generated_images"] == 8

    session = Session(config, tmp_path)
    # Normalised by what encode recorded, since the config says nothing.
    record = json.loads((made[0] / "latents.json").read_text())
    assert session.model.space.mean == tuple(record["mean"]) and session.model.space.std == tuple(record["std"])
    # Reference images are what the stored means decode to.
    images, labels = session.images.load(session.test_source)
    model, params = hub.load(made[1])
    stored, _ = data.load_arrays(session.test_source)
    expected = np.clip(model.apply({"params": params}, stored[..., :4], method="decode"), -1, 1)
    assert images.shape == (8, 8, 8, 3)
    assert np.abs(images.astype(int) - data.to_uint8(np.asarray(expected)).astype(int)).max() <= 1
    np.testing.assert_array_equal(labels, [0] * 4 + [1] * 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents.vae": "/nowhere"}, "/nowhere"),
        ({"latents.mean": (0.0,), "latents.std": (1.0,)}, "config.latents.mean is .*config.data.channels is 4"),
        (
            {"method.name": "diffusion"},
            "config.method.name is 'diffusion', which is of images, and config.data.name 'lat",
        ),
        (
            {"latents.unit_range": True},
            r"latents of images in \[-1, 1\]; set it to False, or encode images with --unit",
        ),
        ({"data.flip": True}, "config.data.flip is True, which is for images"),
        ({"evaluation.num_likelihood_images": 5}, "config.evaluation.num_likelihood_images is 5, which is for images"),
        ({"data.image_size": 8}, "config.data.image_size is 8, but the latents in .* are of 4x4"),
    ],
)
@pytest.mark.usefixtures("one_device")
def test_what_cannot_work_is_said_before_training(made, tmp_path, change, message):
    config = config_for(made)
    for path, value in change.items():
        section, field = path.split(".")
        config[section][field] = value
    with pytest.raises(ConfigError, match=message) as caught:
        Session(config, tmp_path)
    assert "\n" not in str(caught.value)
