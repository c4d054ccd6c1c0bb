"""The whole command on a tiny run: the report speaks of what the run left, and damaged files are one line each."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

from configs import image_folder
from diffusion_jax.config import ConfigError
from diffusion_jax.jobs import cost, run, sweep_scores
from diffusion_jax.jobs.session import Session
from diffusion_jax.training import sharding
from diffusion_jax.training.checkpoints import CheckpointError, newest_step, restore_params
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
    assert "sampled with Euler in 3 steps" in page(workdir).text
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
            "evaluation.json",
            b'{"read_as_requested": 1, "classifier_test_accuracy": 1, "read_as_requested_per_class": {"0": "x"}}',
            "evaluation.json does not hold",
        ),
        ("sampling.json", b'{"sampler": [1]}', r"sampling.json: sampler is \[1\]; it must be text"),
        ("sampling.json", b'{"num_steps": "many"}', "sampling.json: num_steps is 'many'; it must be a number"),
        ("metrics.jsonl", b'{"step": 40, "loss": "high"}', "metrics.jsonl: loss is 'high'; it must be a number"),
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
    for name in (".report.html.part", "notes.tmp", ".mine.part"):
        (workdir / name).write_text("<p>hal")
    assert report(workdir) == 0
    assert not (workdir / ".report.html.part").exists()
    assert (workdir / "notes.tmp").is_file() and (workdir / ".mine.part").is_file()  # of the user


def test_a_folder_whose_name_is_no_text_is_refused_before_anything_is_compiled(tmp_path):
    command = [sys.executable, "-m", "diffusion_jax.main", "--config", "tests/configs/tiny.py", "--workdir"]
    result = subprocess.run([*command, bytes(tmp_path) + b"/\xff"], capture_output=True, check=False)
    assert result.returncode == 2 and b"is not UTF-8, which checkpoints need" in result.stderr
    assert not list(tmp_path.iterdir())


def drawn(workdir, **sampling):
    config = tiny.get_config()
    for field, value in sampling.items():
        setattr(config.sampling, field, value)
    return run.run(config, workdir, ("sample",), command="")


def test_images_are_saved_and_a_killed_draw_goes_on(workdir):
    assert drawn(workdir, save="images", num_images=40) == 0
    files = sorted((workdir / "images").glob("*.png"))
    assert [file.name for file in files] == [f"{number:06d}.png" for number in range(40)]
    before = {file.name: file.read_bytes() for file in files}
    times = {file.name: file.stat().st_mtime_ns for file in files}
    files[20].unlink()  # of the second batch of 16
    (workdir / "images" / "000039.part").write_bytes(b"hal")
    assert drawn(workdir, save="images", num_images=40) == 0
    again = sorted((workdir / "images").glob("*.png"))
    assert {file.name: file.read_bytes() for file in again} == before
    assert sum(file.stat().st_mtime_ns != times[file.name] for file in again) == 16


def test_an_archive_holds_the_images_and_what_was_asked_for(workdir):
    assert drawn(workdir, save="npz", num_images=20) == 0
    with np.load(workdir / "samples.npz") as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert images.shape == (20, 8, 8, 1) and images.dtype == np.uint8
    np.testing.assert_array_equal(labels, np.arange(20) % 10)
    np.testing.assert_array_equal(images[7, ..., 0], Image.open(workdir / "images" / "000007.png"))


def test_images_of_other_settings_are_not_mixed(workdir):
    assert drawn(workdir, save="images") == 0
    with pytest.raises(ConfigError, match="holds images that were drawn with seed 0, and now it is 3; move them"):
        drawn(workdir, save="images", seed=3)


def test_another_draw_keeps_the_pictures_of_the_last(workdir):
    before = (workdir / "samples.png").read_bytes()
    assert drawn(workdir) == 0  # the same again
    assert not (workdir / "earlier").exists() and (workdir / "samples.png").read_bytes() == before
    assert drawn(workdir, seed=5) == 0
    assert (workdir / "earlier" / "1" / "samples.png").read_bytes() == before != (workdir / "samples.png").read_bytes()
    assert json.loads((workdir / "earlier" / "1" / "sampling.json").read_text())["seed"] == 0
    assert drawn(workdir, seed=5, num_images=8) == 0
    assert json.loads((workdir / "earlier" / "2" / "sampling.json").read_text())["num_images"] == 20


def pictures(workdir):
    """Steps of the pictures in the events that TensorBoard reads."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12 : 12 + length])
            found += [event.step for value in event.summary.value if value.HasField("image")]
            content = content[16 + length :]
    return found


def test_tensorboard_shows_samples_while_it_trains(whole, tmp_path):
    assert pictures(whole) == [40]  # of the job that samples
    config = tiny.get_config()
    config.sampling.every = 15
    assert run.run(config, tmp_path / "run", ("train",), command="") == 0
    assert pictures(tmp_path / "run") == [15, 30, 40]
    checkpoints = [(folder / "checkpoints" / "40") for folder in (whole, tmp_path / "run")]
    states = [restore_params(folder.parent, _shapes(tiny.get_config())) for folder in checkpoints]
    jax.tree.map(np.testing.assert_array_equal, *(params for _, params in states))


def _shapes(config):
    session = Session(config, Path("nowhere"))
    batch = {"image": np.zeros((1, *session.model.image_shape), np.float32)}
    shapes = jax.eval_shape(session.model.init, jax.random.key(0), batch)
    return sharding.sharded_shapes(session.mesh, shapes)


def test_the_data_are_described_before_anything_is_compiled(workdir, capfd):
    assert drawn(workdir) == 0
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "1,438 images to train on and 359 held out, of 10 classes"
    assert any(line.startswith("wrote samples.png of 20 images (sampler ddim, num steps 4") for line in said)


def test_a_run_of_days_is_announced(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_rate", lambda: 1e11)
    config = image_folder.get_config()
    config.data.name, config.data.path, config.data.image_size = "digits", None, 32
    line = cost.warning(Session(config, Path("nowhere")))
    # 200,000 updates of 128 images, 3 passes of 12 billion operations (6.06 G multiply-adds), at 3e10 a second
    days = int(re.search(r"about (\d+) days on this machine", line)[1])
    assert days == pytest.approx(3 * 2 * 6.06e9 * 128 * 200_000 / 3e10 / 86400, rel=0.15)
    assert cost.warning(Session(tiny.get_config(), Path("nowhere"))) is None
    half = cost.warning(Session(config, Path("nowhere")), done=100_000)
    assert int(re.search(r"about (\d+) days", half)[1]) == pytest.approx(days / 2, abs=1)
    # one that goes on is announced by what is left
    (tmp_path / "checkpoints" / "100000").mkdir(parents=True)
    (tmp_path / "checkpoints" / "best").mkdir()
    assert newest_step(tmp_path / "checkpoints") == 100_000 and newest_step(tmp_path / "checkpoints" / "best") == 0


def test_a_table_has_the_columns_that_say_something():
    results = [{"sampler": "ddim", "num_steps": 4, "guidance_scale": None, "fid": 12.3456}]
    assert sweep_scores.table(results).splitlines() == ["sampler  num_steps    fid", "   ddim          4  12.35"]


def test_a_classifier_of_few_images_takes_few_steps():
    from diffusion_jax.metrics.classifier import train_classifier

    images = np.zeros((51, 8, 8, 1), np.uint8)
    trained = train_classifier(images, np.arange(51) % 3, 3)
    assert (trained.description["steps"], trained.description["batch_size"]) == (100, 51)
