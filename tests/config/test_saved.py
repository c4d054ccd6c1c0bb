"""What a run wrote of its config is read back, also by trees whose sections have fewer fields."""

import json
import shutil
from pathlib import Path

import pytest

from configs import digits, digits_classifier
from configs.papers import dit_imagenet256, edm_imagenet64
from diffusion_jax import config as experiment
from diffusion_jax.config import saved

HERE = Path(__file__).parent


def written(folder, content):
    (folder / "config.json").write_text(json.dumps(content))
    return saved.read(folder)


@pytest.mark.parametrize("config", [digits, digits_classifier, dit_imagenet256, edm_imagenet64])
def test_what_is_written_is_read(tmp_path, config):
    config = config.get_config()
    assert dict(experiment.flatten(written(tmp_path, config.to_dict()))) == dict(experiment.flatten(config))


def test_a_record_of_the_options_of_every_choice(tmp_path):
    """flat.json is of a run of digits.py, by a tree whose sections had all constructors' options, null where unset."""
    shutil.copy(HERE / "flat.json", tmp_path / "config.json")
    before = dict(experiment.flatten(saved.read(tmp_path)))
    assert before == dict(experiment.flatten(digits.get_config()))


def test_null_that_switches_off_is_told_from_null_that_is_unset(tmp_path):
    flat = json.loads((HERE / "flat.json").read_text())
    flat["optimizer"]["clip_norm"] = None  # never clipped
    flat["sampling"].update({"name": "ddpm", "num_steps": None, "variance": None, "clip": None})
    flat["ema"].update({"kind": "power", "decay": None, "sigma_rel": None})
    config = written(tmp_path, flat)
    assert config.optimizer.clip_norm is None and config.optimizer.b1 == 0.9
    assert (config.sampling.num_steps, config.sampling.variance, config.sampling.clip) == (None, "fixed_large", 1.0)
    assert config.ema.sigma_rel == 0.1 and "decay" not in config.ema


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "config.json"),
        ({"method": "diffusion"}, "is no config of a run"),
        ({"training": 3}, r"is no config of a run \(training is no section\)"),
        ({"method": {"name": "alchemy"}}, "config.method.name 'alchemy' does not exist"),
        ({"training": {"batch_size": "many"}}, "config.training.batch_size is 'many', of type str"),
    ],
)
def test_what_is_no_record_is_one_line(tmp_path, content, message):
    with pytest.raises(experiment.ConfigError, match=message) as raised:
        written(tmp_path, content)
    assert "\n" not in str(raised.value) and str(tmp_path) in str(raised.value)
