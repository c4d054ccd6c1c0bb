"""What an addition costs: a method is a folder and a config, and no other file knows its name."""

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
