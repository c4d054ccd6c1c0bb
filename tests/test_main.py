"""The command as users run it: what it leaves, what it refuses, and that no kill costs more than time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion_jax import main as command
from diffusion_jax.jobs.session import Session
from tests.configs import tiny

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "configs" / "tiny.py"
CONTRACT = (
    *("config.json", "checkpoints", "metrics.jsonl", "evaluation.json"),
    *("samples.png", "sampling.gif", "report.html"),
)


def start(workdir, *arguments, devices=1):
    """The real command in a process of its own."""
    environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    line = [sys.executable, "-m", "diffusion_jax.main", "--config", str(TINY), "--workdir", str(workdir), *arguments]
    return subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process):
    """(exit code, what it wrote to stderr)."""
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors


def run(workdir, *arguments, devices=1):
    code, errors = finish(start(workdir, *arguments, devices=devices))
    assert code == 0, errors
    return errors


def wait_for(path: Path, process):
    """Until `path` exists; the run must not end before."""
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, f"ended before {path.name}: {process.stderr.read()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def parameters(workdir, **changes):
    config = tiny.get_config()
    config.training.update(changes)
    step, params = Session(config, Path(workdir)).parameters
    return step, [np.asarray(leaf) for leaf in __import__("jax").tree.leaves(params)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    run(workdir)
    return workdir


def test_the_command_leaves_every_file_of_the_contract(whole_run):
    for name in CONTRACT:
        path = whole_run / name
        assert any(path.iterdir()) if path.is_dir() else path.stat().st_size, name
    lines = [json.loads(line) for line in (whole_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[-1]["loss"] < lines[0]["loss"]
    scores = json.loads((whole_run / "evaluation.json").read_text())
    assert scores["protocol"] and "fid" not in json.dumps(list(scores)).lower()
    assert 0 < scores["bits_per_dimension"]["mean"] < 20 and scores["bits_per_dimension"]["images"] == 4
    page = (whole_run / "report.html").read_text(encoding="utf-8")
    assert 'src="http' not in page and 'href="http' not in page and page.count("data:image/") >= 4


def test_a_second_run_gives_the_same_images_whatever_the_devices_and_the_batch(whole_run, tmp_path):
    run(tmp_path / "again", "--config.sampling.batch_size=24", devices=4)
    one, two = (
        np.asarray(Image.open(workdir / "samples.png")).astype(int) for workdir in (whole_run, tmp_path / "again")
    )
    # Sums over devices are rounded in another order, which may move a pixel by one of its 256 values.
    assert one.shape == two.shape and np.abs(one - two).max() <= 2
    losses = [
        [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        for workdir in (whole_run, tmp_path / "again")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_killed_in_mid_training_it_resumes_to_the_same_bits(tmp_path):
    length = "--config.training.num_steps=300"
    run(tmp_path / "calm", "--mode", "train", length)
    killed = start(tmp_path / "killed", "--mode", "train", length)
    wait_for(tmp_path / "killed" / "checkpoints" / "40", killed)
    killed.send_signal(signal.SIGKILL)
    assert finish(killed)[0] == -signal.SIGKILL
    assert not (tmp_path / "killed" / "checkpoints" / "300").exists()
    assert "resuming" in run(tmp_path / "killed", "--mode", "train", length)

    calm, resumed = (parameters(tmp_path / name, num_steps=300) for name in ("calm", "killed"))
    assert calm[0] == resumed[0] == 300
    for one, two in zip(calm[1], resumed[1], strict=True):
        np.testing.assert_array_equal(one, two)
    calm_lines, resumed_lines = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("calm", "killed")
    )
    assert [(line["step"], line["loss"]) for line in calm_lines] == [
        (line["step"], line["loss"]) for line in resumed_lines
    ]


def test_sigterm_saves_first(tmp_path):
    process = start(tmp_path, "--config.training.num_steps=100000", "--config.training.checkpoint_every=100000")
    wait_for(tmp_path / "metrics.jsonl", process)
    process.send_signal(signal.SIGTERM)
    code, errors = finish(process)
    assert code == 128 + signal.SIGTERM and "SIGTERM" in errors
    saved = [int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()]
    assert len(saved) == 1 and 0 < saved[0] < 100000
    assert not (tmp_path / "samples.png").exists()


def refused(capfd, *arguments):
    """The one line with which the command refuses its arguments, in a process of its own flags."""
    done = subprocess.run(
        [sys.executable, "-m", "diffusion_jax.main", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == command.BAD_INPUT, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config FILE is missing"),
        (["--config", "configs/digts.py"], "there is no such file; there are configs/digits.py"),
        (["--config", "configs/digits.py", "--mode", "trian"], "--mode 'trian' does not exist; it can be train"),
        (["--config", "configs/digits.py", "--config.trainin.num_steps=3"], "did you mean 'training'"),
        (["--config", "configs/digits.py", "--config.training.num_steps=many"], "'many'; it must be of type int"),
        (["--config", "configs/digits.py", "surplus"], "unexpected argument 'surplus'"),
        (["--config", "configs/digits.py:big"], "jax: --config configs/digits.py: its get_config() takes no argument"),
        (["--config", "configs/papers/dit_imagenet256.py:xl3"], "jax: dit_imagenet256.py:xl3: there is no such size"),
        (["--config", "configs/digits.py", "--wrkdir", "x"], "--wrkdir is not an option; did you mean --workdir?"),
        (["--config", "configs/digits.py", "--seed", "3"], "--seed is not an option; did you mean --config.seed?"),
        (["--confg", "configs/digits.py"], "--confg is not an option; did you mean --config?"),
        (["--config", "configs/digits.py", "--config.mesh=x"], "config.mesh is 'x'; it is a section with data, fsdp"),
    ],
)
def test_a_bad_command_is_refused_in_one_line(capfd, arguments, message):
    assert message in refused(capfd, *arguments)


def test_a_run_is_not_resumed_with_other_settings(capfd, whole_run):
    before = {path: path.read_bytes() for path in whole_run.iterdir() if path.is_file()}
    line = refused(
        capfd, "--config", str(TINY), "--workdir", str(whole_run), "--mode", "train", "--config.model.width=32"
    )
    assert "config.model.width is 32, but the run in" in line and "begun with 16" in line
    assert before == {path: path.read_bytes() for path in whole_run.iterdir() if path.is_file()}


def test_sampling_needs_a_checkpoint_and_leaves_nothing_without(capfd, tmp_path):
    workdir = tmp_path / "none"
    line = refused(capfd, "--config", str(TINY), "--workdir", str(workdir), "--mode", "sample")
    assert "there is no checkpoint" in line and not (workdir / "config.json").exists()


DIGITS = "from configs import digits\ndef get_config():\n    c = digits.get_config()\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            f"{DIGITS}    c.modle = 3\n    return c\n",
            "broken.py, line 4: config field 'modle' does not exist; did you mean 'model'?",
        ),
        ("def get_config():\n    return 1 / 0\n", "broken.py, line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    return 3\n", "get_config() gives int; it has to change and to return"),
        ("import sys\ndef get_config():\n    sys.exit(0)\n", "broken.py, line 3: SystemExit: 0"),
        ("def get_config(:\n", "broken.py, line 1: SyntaxError"),
        ("x = 1\n", "there is no get_config() in it"),
        (
            f"{DIGITS}    c.name = c.modle.name\n",
            "AttributeError: config field 'modle' does not exist; did you mean 'mod",
        ),
        (
            f"{DIGITS}    c.mesh = 'x'\n    return c\n",
            "broken.py, line 4: config.mesh is 'x'; it is a section with data, fsdp, tensor",
        ),
    ],
)
def test_a_config_file_with_a_mistake_is_named(capfd, tmp_path, content, message):
    broken = tmp_path / "broken.py"
    broken.write_text(content)
    line = refused(capfd, "--config", str(broken))
    assert message in line and len(line) < 400


def shown(capsys, *arguments):
    assert command.main(["main", *arguments]) == 0
    return capsys.readouterr().out


def test_help_lists_modes_and_fields(capsys):
    text = shown(capsys, "--help")
    for expected in ("--config.training.batch_size=128", "evaluate", "--workdir", "--config.sampling.guidance_scale"):
        assert expected in text


def test_help_says_what_fields_mean(capsys):
    text = " ".join(shown(capsys, "--help").split())
    assert "--config.training.batch_size=128 images of an update, over all devices and hosts" in text
    assert "--config.optimizer.learning_rate=0.0002 of the updates, after warm-up" in text
    assert "--config.model.dropout=0.1 share of activations that training drops inside residual blocks" in text
    for field, other in (
        ("model.name=unet", "segnet"),
        ("process.name=linear", "sub_vp_sde"),
        ("ema.kind=ddpm", "edm"),
    ):
        assert other in text.partition(f"--config.{field} ")[2].partition("--config.")[0].replace(",", "").split()


def test_help_is_of_the_config_and_of_what_is_set(capsys):
    text = shown(capsys, "--config", "configs/digits.py", "--config.sampling.name=edm", "--help")
    assert "--config.model.width=384" in text and "--config.sampling.s_churn=0.0" in text
    assert "--config.model.channels" not in text and "spacing_rule" not in text
    assert max(map(len, text.splitlines())) <= 120
