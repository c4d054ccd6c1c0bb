"""`--mode sample --from RUN`: images of a class-conditional run, by the real commands."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from diffusion_jax import hub
from diffusion_jax import main as command
from diffusion_jax.config import saved
from diffusion_jax.jobs.session import Session
from tests.configs import tiny

STEPS = 5  # which divide the chain: otherwise diffusers' DDIM steps elsewhere than the run does


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("drawn") / "digits"
    assert command.main(["main", "--config", tiny.__file__, "--mode", "train", "--workdir", str(workdir)]) == 0
    return workdir


def draw(run, out, *arguments) -> int:
    given = ("--from", run, "--steps", STEPS, "--out", out, *arguments)
    return command.main(["main", "--mode", "sample", *map(str, given)])


def pictures(out: Path):
    """(pixels, settings) of the images in a folder, in order."""
    found = []
    for file in sorted(out.iterdir()):
        with Image.open(file) as picture:
            found.append((np.asarray(picture).astype(int), json.loads(picture.text["diffusion_jax"])))
    return found


def by_the_run(run, labels, scale=None):
    """What the run's own model and sampler draw, as pixels."""
    config = saved.read(run)
    config.sampling.num_steps = STEPS
    session = Session(config, run)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), np.arange(len(labels)))
    drawn, _ = session.model.sample(session.parameters[1], keys, {"label": np.asarray(labels, np.int32)}, scale)
    return np.asarray(drawn / 2 + 0.5)


def test_classes_come_in_turn(run, tmp_path):
    assert draw(run, tmp_path / "out", "--num", 12) == 0
    drawn = pictures(tmp_path / "out")
    assert [settings["label"] for _, settings in drawn] == [*range(10), 0, 1]
    expected = by_the_run(run, [*range(10), 0, 1])
    for (pixels, settings), image in zip(drawn, expected, strict=True):
        assert pixels.shape == (8, 8) and settings["guidance"] == 1
        assert np.abs(pixels - np.round(255 * image[..., 0])).max() <= 1


def test_one_class_and_guidance(run, tmp_path):
    """By the null class, as the run itself guides; both change the images."""
    assert draw(run, tmp_path / "plain", "--num", 3, "--label", 7) == 0
    assert draw(run, tmp_path / "guided", "--num", 3, "--label", 7, "--guidance", 3) == 0
    assert draw(run, tmp_path / "zero", "--num", 3, "--label", 7, "--guidance", 0) == 0
    plain, guided, zero = ([pixels for pixels, _ in pictures(tmp_path / n)] for n in ("plain", "guided", "zero"))
    for drawn, scale in ((plain, None), (guided, 3.0), (zero, 0.0)):
        expected = by_the_run(run, [7] * 3, scale)
        assert np.abs(np.stack(drawn) - np.round(255 * expected[..., 0])).max() <= 1
    assert all(settings["label"] == 7 for _, settings in pictures(tmp_path / "guided"))
    assert np.abs(np.stack(plain) - guided).max() > 3
    other = tmp_path / "other"
    assert draw(run, other, "--num", 3, "--label", 2) == 0
    assert np.abs(np.stack(plain) - np.stack([pixels for pixels, _ in pictures(other)])).max() > 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--label", 10), "--label is 10; "),
        (("--label", -1), "has the classes 0 to 9"),
        (("--label", "x"), "argument --label: invalid int value: 'x'"),
        (("--prompt", "seven"), "draws without prompts, and does nothing with --prompt; it takes --num"),
        (("--size", "8x8"), "does nothing with --size"),
        (("--guidance", "nan"), "--guidance is nan; it must be finite"),
        (("--control", "x", "--control_image", "y"), "which a ControlNet needs"),
        (("--embedding", "x"), "does nothing with --embedding"),
    ],
)
def test_what_a_run_cannot_do_is_one_line(arguments, message, run, tmp_path, capfd):
    capfd.readouterr()
    assert draw(run, tmp_path / "out", *arguments) == 2
    said = capfd.readouterr().err.strip()
    assert message in said and said.count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_labels_of_the_pipeline(run):
    pipe = hub.load_pipeline(run)
    expected = by_the_run(run, [3, 1])
    np.testing.assert_allclose(pipe(num_steps=STEPS, labels=[3, 1]), expected, rtol=0, atol=1e-5)
    for labels, message in (
        ([10, 0], r"label 10 does not exist; it can be 0 to 9"),
        ([0.5, 1.0], "they must be integers, one or 2"),
        ([[0], [1]], "they must be integers, one or 2"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(2, num_steps=STEPS, labels=labels)
    with pytest.raises(TypeError, match="no 'class_labels': here it is labels"):
        pipe(2, num_steps=STEPS, class_labels=[1, 2])
