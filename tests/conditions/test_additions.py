"""What a condition costs: its file, a source that has it and a network that takes it, and nothing in between."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_jax.conditions.registry import CONDITIONS

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "diffusion_jax"

# 1. The condition: words of a small vocabulary, as numbers from 1 on; 0 is for nothing.
CONDITION = '''
"""The words of a caption."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from diffusion_jax.conditions.condition import Condition

LENGTH = 3


@dataclasses.dataclass(frozen=True)
class Caption(Condition):
    """Words by their place in a vocabulary."""

    words: tuple[str, ...]

    name = "caption"
    argument = "word_ids"

    @classmethod
    def of(cls, source):
        if not hasattr(source, "captions"):
            raise ValueError("the data has no captions")
        return cls(tuple(sorted({word for caption in source.captions for word in caption.split()})))

    @property
    def network_options(self):
        return {"vocabulary": len(self.words) + 1}

    def encode(self, values):
        ids = np.zeros((len(values), LENGTH), np.int32)
        for row, caption in enumerate(values):
            for place, word in enumerate(caption.split()[:LENGTH]):
                ids[row, place] = 1 + self.words.index(word)
        return {"ids": ids}

    def null(self, count):
        return {"ids": jnp.zeros((count, LENGTH), jnp.int32)}

    def requests(self, source, indices):
        captions = [("all black", "all white")[index % 2] for index in indices]
        return self.encode(captions)


CONDITION = Caption
'''
# 2. A source whose examples have captions, and 3. a network that reads them.
REST = '''
import numpy as np
import jax.numpy as jnp
from flax import linen as nn

from diffusion_jax.data.sources import KINDS, Kind
from diffusion_jax.models.registry import MODELS
from diffusion_jax.options import described


class Captioned:
    """Black or white squares that say so."""

    image_shape, dtype, num_classes, class_names = (8, 8, 1), np.dtype(np.uint8), None, None
    captions = ["all black", "all white"] * 40

    def __len__(self):
        return len(self.captions)

    def __getitem__(self, index):
        if not 0 <= index < len(self):
            raise IndexError
        image = np.full(self.image_shape, 255 * (index % 2), np.uint8)
        return {"image": image, "condition": {"caption": self.captions[index]}}


@described(vocabulary="numbers of words", out_channels="of the images")
class Reader(nn.Module):
    """Predicts an image of one value from the words alone."""

    vocabulary: int = 1
    out_channels: int = 1
    dtype: str = "float32"

    def validate(self, image_size, channels):
        pass

    @nn.compact
    def __call__(self, sample, timestep, class_labels=None, train=False, word_ids=None):
        words = nn.Embed(self.vocabulary, 4)(word_ids["ids"]).reshape(len(sample), -1)
        value = nn.Dense(1)(nn.relu(nn.Dense(16)(words)))
        return jnp.broadcast_to(value[:, None, None], (*sample.shape[:3], self.out_channels))


MODELS["reader"] = Reader
KINDS["captioned"] = Kind(lambda split, **options: Captioned())
'''
CONFIG = """
from diffusion_jax import config as experiment


def get_config():
    config = experiment.default()
    config.name = "captions"
    config.data.update({"name": "captioned", "image_size": 8, "channels": 1})
    config.model.name = "reader"
    config.process.num_timesteps = 50
    config.method.update({"prediction": "sample", "conditions": ("caption",), "label_dropout": 0.3})
    config.optimizer.learning_rate = 2e-2
    config.ema.update({"kind": "warmup", "decay": 0.9})
    config.training.update({"batch_size": 32, "num_steps": 150, "log_every": 50, "checkpoint_every": 150})
    config.sampling.update({"num_images": 8, "batch_size": 8, "num_steps": 4, "guidance_scale": 1.5, "save": "npz"})
    config.evaluation.update({"num_images": 16, "max_reference_images": 40, "num_likelihood_images": 4})
    return config
"""
RUN = """
import importlib, sys
from diffusion_jax import conditions, platform
platform.prepare()
conditions.__path__.append(sys.argv.pop(1))
importlib.import_module("beside")
from diffusion_jax import main
sys.exit(main.main(["main", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captions")
    (folder / "rooms").mkdir()
    (folder / "rooms" / "caption.py").write_text(CONDITION)
    (folder / "beside.py").write_text(REST)
    (folder / "captions.py").write_text(CONFIG)
    return folder


def command(folder, *arguments):
    environment = {
        "PYTHONPATH": f"{ROOT}:{folder}",
        "JAX_PLATFORMS": "cpu",
        "HOME": str(folder),
        "PATH": "/usr/bin:/bin",
    }
    line = [sys.executable, "-P", "-c", RUN, str(folder / "rooms"), "--config", str(folder / "captions.py")]
    return subprocess.run(
        [*line, "--workdir", str(folder / "run"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_words_travel_from_a_source_to_a_network_that_nobody_in_between_knows(captions):
    done = command(captions)
    assert done.returncode == 0, done.stderr
    with np.load(captions / "run" / "samples.npz") as saved:
        levels = saved["arr_0"].reshape(8, -1).mean(1)
    # guidance goes beyond what was asked for, and black and white cannot be passed
    np.testing.assert_array_equal(levels < 40, np.arange(8) % 2 == 0)
    np.testing.assert_array_equal(levels > 215, np.arange(8) % 2 == 1)
    assert json.loads((captions / "run" / "evaluation.json").read_text())["bits_per_dimension"]["images"] == 4
    page = (captions / "run" / "report.html").read_text(encoding="utf-8")
    assert "A conditional diffusion model" in page
    refused = command(
        captions, "--mode=train", "--config.model.name=mlp", "--config.name=other", f"--workdir={captions}/b"
    )
    assert refused.returncode == 2 and "cannot be told the condition 'caption': it takes no word_ids" in refused.stderr


def test_no_file_knows_a_condition_but_its_own():
    """Labels are also what scores, pictures and classifiers are about."""
    assert set(CONDITIONS) == {"label"}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "word_ids" not in text and '"caption"' not in text
