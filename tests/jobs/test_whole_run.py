"""The whole command on a tiny run: the report speaks of what the run left, and damaged files are one line each."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.config import ConfigError
from diffusion_jax.jobs import run
from diffusion_jax.training.checkpoints import CheckpointError
from tests.configs import tiny
from tests.figures.test_report import Page


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    assert run.run(tiny.get_config(), workdir, ("train", "sample", "evaluate", "report"), command="the command") == 0
    return workdir


@pytest.fixture
def workdir(whole, tmp_path):
    """A copy of the run, to be damaged."""
    return shutil.copytree(whole, tmp_path / "run")


def page(workdir):
    return Page((workdir / "report.html").read_text(encoding="utf-8"))


def report(workdir, **changes):
    config = tiny.get_config()
    config.sampling.update(changes)
    return run.run(config, workdir, ("report",), command="the command")


def test_the_cards_hold_what_the_run_measured(whole):
    text = page(whole).text
    timing = json.loads((whole / "timing.json").read_text())
    assert re.search(rf"Training {timing['train_seconds']:.1f} s {timing['images_per_second']:,.0f} images/s", text)
    distance = json.loads((whole / "evaluation.json").read_text())["frechet_distance_classifier"]
    assert f"Fréchet distance {distance:.3g} " in text


def test_the_summary_says_how_often_each_image_was_seen(whole):
    # 40 steps of 16 images, of scikit-learn's 1,438 for training
    assert "for 40 steps on 640 images: 1,438 different ones, each 0.45 times" in page(whole).text


def test_real_images_stand_beside_the_generated_ones(whole):
    alternatives = [attributes["alt"] for attributes in page(whole).all("img")]
    assert alternatives[:2] == ["A grid of generated images", "A grid of real images"]
    assert Image.open(whole / "real.png").size == Image.open(whole / "samples.png").size


def test_pictures_are_described_by_the_settings_that_they_were_drawn_with(workdir):
    config = tiny.get_config()
    config.sampling.name, config.sampling.num_steps = "euler", 3
    assert run.run(config, workdir, ("sample",), command="") == 0
    assert report(workdir) == 0  # of the config that the run has
    assert "sampled with EULER in 3 steps" in page(workdir).text
    assert json.loads((workdir / "sampling.json").read_text())["num_steps"] == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("timing.json", b"{", "timing.json: cannot be read as JSON .*run --mode train again"),
        ("timing.json", b"[" * 100_000, "nested too deep.*; run --mode train again"),
        ("timing.json", b'{"train_seconds": "long"}', "timing.json: train_seconds is 'long'; it must be a number"),
        ("sampling.json", b"[]", "sampling.json: holds a list.*; run --mode sample again"),
        ("scoring.json", b'{"extractor": 3}', "scoring.json names no extractor"),
        (
            "evaluation.json",
            b'{"seconds": {}, "frechet_distance_classifier_ratio": 1}',
            "evaluation.json does not hold",
        ),
        (
            "samples.png",
            b"\x89PNG\r\n\x1a\n and no more",
            "samples.png: is no picture, or a damaged.*--mode sample again",
        ),
        ("sampling.gif", b"GIF89a", "sampling.gif: is no picture, or a damaged one"),
        ("denoising.png", b"%!PS-Adobe-3.0 EPSF-3.0", "denoising.png: is no picture, or a damaged one"),
    ],
)
def test_a_damaged_file_is_one_line_and_leaves_the_report(workdir, name, content, said):
    (workdir / name).write_bytes(content)
    before = (workdir / "report.html").read_bytes()
    with pytest.raises(ConfigError, match=said) as caught:
        report(workdir)
    assert "\n" not in str(caught.value) and (workdir / "report.html").read_bytes() == before


def test_lines_of_the_curve_that_are_none_are_passed_over(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "", lines[1][:20], "NaN", *lines[1:], '{"step": 40, "loss": NaN}']))
    assert report(workdir) == 0


@pytest.mark.parametrize("name", ["samples.png", "metrics.jsonl", "config.json"])
def test_a_folder_in_the_place_of_a_file_is_said_at_once(tmp_path, name):
    (tmp_path / "run" / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match=rf"{name} is a folder, where the run has a file"):
        run.run(tiny.get_config(), tmp_path / "run", ("train",), command="")


def test_a_checkpoint_under_another_number_is_refused(workdir):
    (workdir / "checkpoints" / "40").rename(workdir / "checkpoints" / "41")
    for modes in (("report",), ("train",)):
        with pytest.raises(CheckpointError, match="41 is that of step 40, renamed or copied"):
            run.run(tiny.get_config(), workdir, modes, command="")


def test_a_file_among_the_checkpoints_is_refused(workdir):
    (workdir / "checkpoints" / "60").write_text("")
    with pytest.raises(CheckpointError, match="60 is a file, where checkpoints are folders"):
        report(workdir)


def test_what_a_killed_command_left_of_a_file_goes_away(workdir):
    (workdir / ".report.html.part").write_text("<p>hal")
    assert report(workdir) == 0
    assert not list(workdir.glob(".*.part"))


def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_compiled(tmp_path):
    command = [sys.executable, "-m", "diffusion_jax.main", "--config", "tests/configs/tiny.py", "--workdir"]
    result = subprocess.run([*command, bytes(tmp_path) + b"/\xff"], capture_output=True, check=False)
    assert result.returncode == 2 and b"is not UTF-8, which checkpoints need" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_classifier_of_few_images_takes_few_steps():
    from diffusion_jax.metrics.classifier import train_classifier

    images = np.zeros((51, 8, 8, 1), np.uint8)
    trained = train_classifier(images, np.arange(51) % 3, 3)
    assert (trained.description["steps"], trained.description["batch_size"]) == (100, 51)
