"""What an addition costs: a method is a folder and a config, and no other file knows its name."""

import subprocess
import sys
from pathlib import Path

import pytest
from flax import linen as nn

from configs import digits
from diffusion_jax import config as experiment
from diffusion_jax.config import build, describe
from diffusion_jax.diffusion import samplers
from diffusion_jax.methods.registry import METHODS
from diffusion_jax.models.registry import MODELS
from diffusion_jax.options import described

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "diffusion_jax"

# A method whose model learns the mean image, and draws it with a little noise.
TOY = '''
"""The mean of the images, with noise."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.methods.method import Method
from diffusion_jax.methods.settings import ImageEvaluation, Sampling
from diffusion_jax.options import Variants, described, section


@described(noise="standard deviation of what is added to the mean")
@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of config.method."""

    noise: float = 0.1


class Mean(nn.Module):
    """An image of parameters."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self) -> jax.Array:
        return self.param("mean", nn.initializers.zeros_init(), self.shape)


@dataclasses.dataclass(frozen=True)
class Model:
    """See `methods.method.Drawing`."""

    network: nn.Module
    image_shape: tuple[int, int, int]
    noise: float
    conditions: dict = dataclasses.field(default_factory=dict)

    def init(self, key, batch):
        return self.network.init(key)["params"]

    def loss(self, params, batch, key, step):
        errors = jnp.square(batch["image"] - self.network.apply({"params": params})).mean((1, 2, 3))
        return errors.mean(), {"loss": (errors, jnp.ones_like(errors))}

    def draw(self, params, keys, condition, given, frame_stride):
        noise = jax.vmap(lambda key: jax.random.normal(key, self.image_shape))(keys)
        images = self.network.apply({"params": params}) + self.noise * noise
        return images, None if frame_stride is None else jnp.stack([noise, images])

    def frames(self, count):
        return 1, ["noise", "image"]


class ToyMethod(Method):
    """See `methods.method.Method`."""

    settings = Settings
    sections = {
        **dict.fromkeys(("data", "method", "training", "optimizer", "ema", "mesh"), True),
        "sampling": section(Sampling),
        "evaluation": section(ImageEvaluation),
    }

    def build(self, config, context):
        shape = (config.data.image_size, config.data.image_size, config.data.channels)
        return Model(Mean(shape), shape, config.method.noise)


METHOD = ToyMethod()
'''
CONFIG = """
from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name, config.method.name = "toy", "toy"
    config.data.update({"image_size": 8, "channels": 1})
    config.training.update({"batch_size": 16, "num_steps": 20, "log_every": 10, "checkpoint_every": 20})
    config.sampling.update({"num_images": 8, "batch_size": 8})
    config.evaluation.update({"num_images": 16, "max_reference_images": 100, "classifier_steps": 5})
    return config
"""
# Runs the command with the toy's folder beside the methods that there are.
RUN = """
import sys
from diffusion_jax import methods
methods.__path__.append(sys.argv.pop(1))
from diffusion_jax import main
sys.exit(main.main(["main", *sys.argv[1:]]))
"""


def test_a_method_is_a_folder_and_a_config(tmp_path):
    """Trained, sampled, scored, reported, and in the help: nothing else was touched."""
    room = tmp_path / "rooms" / "toy"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text(TOY)
    (tmp_path / "digits_toy.py").write_text(CONFIG)
    command = [sys.executable, "-P", "-c", RUN, str(tmp_path / "rooms"), "--config", str(tmp_path / "digits_toy.py")]
    environment = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    for arguments in (["--workdir", str(tmp_path / "run"), "--config.method.noise=0.2"], ["--help"]):
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert "standard deviation of what is added to the mean" in done.stdout and "config.process" not in done.stdout
    for product in ("config.json", "metrics.jsonl", "samples.png", "sampling.gif", "evaluation.json", "report.html"):
        assert (tmp_path / "run" / product).stat().st_size, product
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "epsilon" not in page and "A model of images of 8x8 pixels" in page


@described(width="of the one layer")
class Line(nn.Module):
    """A network of one dense layer."""

    width: int = 4
    out_channels: int = 1
    num_classes: int | None = None
    dtype: str = "float32"

    def validate(self, image_size: int, channels: int) -> None:
        if self.width < 1:
            raise ValueError(f"width={self.width}: it must be 1 or more")

    @nn.compact
    def __call__(self, sample, timestep, class_labels=None, train=False):
        return nn.Dense(self.out_channels)(nn.relu(nn.Dense(self.width)(sample)))


@described(num_steps="steps of the sampler")
def leap(process, prediction: str, num_steps: int = 3) -> samplers.Sampler:
    """DDIM by another name."""
    return samplers.ddim(process, prediction, num_steps)


def test_a_network_and_a_solver_are_a_constructor_and_a_line(monkeypatch):
    monkeypatch.setitem(MODELS, "line", Line)
    monkeypatch.setitem(samplers.SAMPLERS, "leap", leap)
    config = digits.get_config()
    experiment.override(config, ["--config.model.width=3", "--config.model.name=line", "--config.sampling.name=leap"])
    experiment.check(config, 1)
    model = build.model(config, build.of_classes(10))
    assert (model.network.width, model.sampler.num_steps) == (3, 50)  # as set, also by the digits
    text = describe.help_text(config)
    assert "--config.model.width=3" in text and "of the one layer" in text and "leap" in text
    config.model.width = 0
    with pytest.raises(experiment.ConfigError, match=r"config.model: width=0: it must be 1 or more"):
        build.model(config, build.of_classes(10))


@pytest.mark.parametrize("name", METHODS)
def test_no_file_outside_a_methods_room_knows_its_name(name):
    words = (f'"{name}"', f"'{name}'", f"methods.{name}")
    allowed = PACKAGE / "config" / "schema.py"  # which method a new config has
    files = [PACKAGE / "main.py", *(PACKAGE / "methods").glob("*.py")]
    for folder in ("jobs", "config", "training", "figures", "data"):
        files += (PACKAGE / folder).rglob("*.py")
    knowing = [path for path in files if any(word in path.read_text(encoding="utf-8") for word in words)]
    assert set(knowing) <= {allowed}
