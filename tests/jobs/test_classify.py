"""A classifier of noisy digits from config to report, and an unconditional model that it guides."""

import functools
import json

import jax
import numpy as np
import pytest

from configs import digits_classifier
from diffusion_jax import hub
from diffusion_jax.config import ConfigError
from diffusion_jax.jobs import run, table
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.session import Session
from diffusion_jax.training import sharding
from tests.configs import tiny


def classifier_config():
    config = digits_classifier.get_config()
    config.name = "tiny_classifier"
    config.process.num_timesteps = 50  # as tiny's
    config.training.update({"batch_size": 32, "num_steps": 40, "log_every": 10, "checkpoint_every": 20})
    config.optimizer.learning_rate = 3e-3
    config.ema.kind = "none"
    config.evaluation.max_reference_images = 60
    config.optimizer.warmup_steps = 0
    config.model.channel_mults = (1,)
    config.model.attention_resolutions = ()
    config.model.norm_groups = 32  # as in guided-diffusion's files
    config.method.least_crop = 0.8
    config.sampling.num_images = 16
    config.sampling.num_frames = 3
    config.sampling.batch_size = 16
    return config


def guided_config(**sampling):
    config = tiny.get_config()
    config.method.class_conditional = False
    config.training.num_steps = 4
    config.optimizer.warmup_steps = 0
    config.evaluation.num_likelihood_images = 0
    config.evaluation.classifier_steps = 10
    config.evaluation.num_images = 20
    config.sampling.guidance_scale = 1.0
    config.sampling.update(sampling)
    return config


@pytest.fixture(scope="module", autouse=True)
def compiled_for_one_run():
    """Nearly all of the time is compilation: half as long without optimisation, and for one device instead of eight."""
    one_device = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", one_device)
        jax.config.update("jax_disable_most_optimizations", True)
        yield
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("classifier")
    assert run.run(classifier_config(), workdir, table.WHOLE_RUN, command="./launch/local.sh") == 0
    return workdir


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("model")
    assert run.run(guided_config(), workdir, ("train",), command="") == 0
    return workdir


def test_a_run_leaves_readings_and_accuracies(classifier):
    for product in (name for job in table.WHOLE_RUN for name in table.JOBS[job].leaves):
        assert (classifier / product).exists(), product
    result = json.loads((classifier / "evaluation.json").read_text())
    levels = result["by_noise_level"]
    assert [level["t"] for level in levels] == [0.0, *(2.0 + 5 * i for i in range(10))]
    np.testing.assert_allclose(result["accuracy"], np.mean([level["accuracy"] for level in levels[1:]]))
    assert all(0 <= level["accuracy"] <= level["top_5_accuracy"] <= 1 for level in levels)
    # 40 steps teach something, where there is little noise.
    assert levels[0]["accuracy"] > 2 * result["chance"] and levels[0]["accuracy"] > levels[-1]["accuracy"]
    assert result["protocol"]["images"].startswith("60 of the test split")
    page = (classifier / "report.html").read_text()
    assert "Accuracy by noise level" in page and "always the commonest class" in page


def test_it_guides_a_model_that_is_told_no_class(classifier, model, tmp_path):
    guided = {"classifier": str(classifier), "classifier_scale": 3.0}
    config = guided_config(**guided)
    assert run.run(config, model, ("sample", "evaluate"), command="") == 0
    result = json.loads((model / "evaluation.json").read_text())
    assert "read_as_requested" in result
    assert result["protocol"]["classifier"] == str(classifier) and result["protocol"]["classifier_scale"] == 3.0

    session = Session(config, model)
    images, labels = Generator(session).draw(20)
    assert labels is not None and labels.tolist() == [*range(10), *range(10)]
    reader = Session(classifier_config(), classifier)
    plain, none = Generator(Session(guided_config(), model)).draw(20)
    assert none is None and (images != plain).any()

    def likely(images):
        x = images.astype(np.float32) / 127.5 - 1
        log_p = reader.model.log_probabilities(reader.parameters[1], x, np.zeros(20, np.int32))
        return float(log_p[np.arange(20), labels].mean())

    assert likely(images) > likely(plain)  # by little, as 4 and 40 steps teach little
    unmoved, _ = Generator(Session(guided_config(**guided | {"classifier_scale": 0.0}), model)).draw(20)
    assert np.abs(unmoved.astype(int) - plain).max() <= 1

    hub.save(*hub.load(classifier), tmp_path / "released")  # guided-diffusion's layout
    again, _ = Generator(Session(guided_config(**guided | {"classifier": str(tmp_path / "released")}), model)).draw(20)
    np.testing.assert_array_equal(again, images)


def refused(match, config, tmp_path):
    with pytest.raises(ConfigError, match=match) as caught:
        Session(config, tmp_path / "new")
    assert "\n" not in str(caught.value)


def test_what_cannot_guide_is_one_line(classifier, model, tmp_path):
    def config(**sampling):
        return guided_config(**{"classifier": str(classifier)} | sampling)

    refused(r"classifier 'nowhere' is no folder", config(classifier="nowhere"), tmp_path)
    refused(r"is a run of method 'diffusion', not of a classifier", config(classifier=str(model)), tmp_path)
    other = config()
    other.process.name = "linear"
    refused(r"was trained with process.name 'cosine', but here it is 'linear'", other, tmp_path)
    larger = config()
    larger.data.image_size = 16
    refused(r"was trained with data.image_size 8, but here it is 16", larger, tmp_path)
    latent = config()
    latent.method.prediction = "edm"
    refused(r"method.prediction is 'edm'; with config.sampling.classifier it can be epsilon", latent, tmp_path)
    refused(r"classifier_scale is 2.0, which is of a classifier", guided_config(classifier_scale=2.0), tmp_path)

    network, params = hub.load(classifier)
    out = params["pool"]["to_out_0"]
    out["kernel"], out["bias"] = out["kernel"][:, :3], out["bias"][:3]
    hub.save(network.clone(num_classes=3), params, tmp_path / "three")
    refused(r"knows 3 classes, but the data has 10", config(classifier=str(tmp_path / "three")), tmp_path)


def test_a_classifier_has_no_settings_of_images(tmp_path):
    for field, value, match in (
        ("evaluation.every", 10, "config.evaluation field 'every' does not exist; it can be checkpoint, max_ref"),
        ("method.class_conditional", True, "method.class_conditional is True, but 'classifier' does not take it"),
        ("model.name", "unet", r"config.model.name 'unet' does not exist; it can be unet_classifier"),
        ("method.least_crop", 0.0, "method.least_crop is 0.0; it must be above 0"),
    ):
        section, _, name = field.partition(".")
        with pytest.raises(ConfigError, match=match):
            config = classifier_config()
            config[section][name] = value
            Session(config, tmp_path)
