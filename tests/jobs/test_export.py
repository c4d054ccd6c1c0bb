"""What this project trained opens in the hub: the network of the config and the averaged parameters."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.hub.__main__ import main as hub_command
from diffusion_jax.jobs.session import Session
from diffusion_jax.training.checkpoints import Checkpoints
from tests.configs import tiny


@pytest.fixture
def run(tmp_path):
    return made(tmp_path / "run")


def made(workdir, class_conditional=True, label_dropout=0.1):
    """A run with one checkpoint, whose average is not its parameters."""
    config = tiny.get_config()
    config.method.class_conditional = class_conditional
    config.method.label_dropout = label_dropout
    config.sampling.guidance_scale = 1.0
    config.model.update({"name": "unet", "channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1, "norm_groups": 4})
    config.model.update({"attention_resolutions": (4,)})
    session = Session(config, workdir)
    session.record.make()
    session.record.write_config(session.config)
    batch = {"image": np.zeros((1, *session.model.image_shape), np.float32)}
    shapes = jax.eval_shape(session.model.init, jax.random.key(0), batch)
    params = jax.tree.map(lambda leaf: np.sin(np.arange(leaf.size, dtype=np.float32)).reshape(leaf.shape) / 10, shapes)
    averaged = jax.tree.map(lambda leaf: -leaf, params)
    with Checkpoints(workdir / "checkpoints", max_to_keep=1) as checkpoints:
        checkpoints.save(1, {"params": params, "ema_params": averaged}, None, {})
    return session, averaged


def test_a_run_is_opened_and_exported(run, tmp_path):
    session, averaged = run
    model, params = hub.load(session.workdir)
    assert model == session.model.network
    jax.tree.map(np.testing.assert_array_equal, params, averaged)
    half = hub.load(session.workdir, dtype="bfloat16", param_dtype="bfloat16")
    assert half[0].dtype == "bfloat16"
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half[1])} == {"bfloat16"}
    hub.save(model, params, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["_class_name"] == "UNet2DModel"
    jax.tree.map(np.testing.assert_array_equal, hub.load(tmp_path / "out")[1], averaged)


# A Python session that has the hub alone; with arguments after the run, one where these packages are not installed.
SESSION = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[2:]:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from diffusion_jax import hub

assert not {"orbax", "clu", "ml_collections", "diffusion_jax.jobs", "diffusion_jax.config"} & set(sys.modules)
try:
    model, params = hub.load(sys.argv[1])
    print(type(model).__name__, float(params["conv_in"]["bias"][1]))
except hub.CheckpointError as error:
    print(error)
"""


def test_a_plain_session_opens_a_run_and_says_which_package_is_missing(run):
    session, averaged = run

    def said(*missing):
        command = [sys.executable, "-P", "-c", SESSION, str(session.workdir), *missing]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert said() == f"UNet {float(averaged['conv_in']['bias'][1])}"
    assert said("orbax") == f"{session.workdir}: to open what training wrote, the package orbax must be installed"


def test_a_run_without_a_checkpoint_is_one_line(run):
    session, _ = run
    for step in (session.workdir / "checkpoints").iterdir():
        step.rename(session.workdir / "elsewhere")
    with pytest.raises(ValueError, match="there is no checkpoint") as refused:
        hub.load(session.workdir)
    assert "\n" not in str(refused.value)


def test_a_run_without_classes_becomes_a_whole_pipeline(tmp_path, capsys):
    """The same network, scheduler and size as the run."""
    session, _ = made(tmp_path / "run", class_conditional=False)
    assert hub_command(["export", str(session.workdir), str(tmp_path / "out")]) == 0
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["_class_name"] == "DDIMPipeline" and index["scheduler"] == ["diffusers", "DDIMScheduler"]
    scheduler = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    np.testing.assert_array_equal(scheduler["trained_betas"], session.model.objective.process.betas)
    drawn = [hub.load_pipeline(source)(2, 4) for source in (session.workdir, tmp_path / "out")]
    height, width, channels = session.model.image_shape
    assert drawn[0].shape == (2, height, width, channels)
    np.testing.assert_array_equal(*drawn)


def test_files_that_are_there_stay(run, tmp_path, capsys):
    session, _ = run
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    assert hub_command(["export", str(session.workdir), str(tmp_path / "out")]) == 2
    assert "is there and not empty; name another folder, or add --overwrite" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    assert hub_command(["export", str(session.workdir), str(tmp_path / "out"), "--overwrite"]) == 0
    assert "passes no classes: call its unet with class_labels" in capsys.readouterr().err


def one_line_and_2(capsys, *arguments) -> str:
    capsys.readouterr()
    assert hub_command([str(argument) for argument in arguments]) == 2
    said = [line for line in capsys.readouterr().err.strip().splitlines() if ": reading " not in line]
    assert len(said) == 1, said
    return said[0]


@pytest.mark.parametrize("command", ["export", "convert"])
def test_a_destination_that_cannot_be_is_one_line_before_anything_is_read(command, tmp_path, capsys, monkeypatch):
    """The source is not there, which would be the next thing to say."""
    (tmp_path / "file").write_text("mine")
    none = tmp_path / "none"
    assert "file is a file; name a folder" in one_line_and_2(capsys, command, none, tmp_path / "file")
    assert "file is a file; name a folder" in one_line_and_2(capsys, command, none, tmp_path / "file" / "deeper")
    assert "file name too long" in one_line_and_2(capsys, command, none, tmp_path / ("x" * 300))
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
        assert f"{tmp_path} cannot be written to" in one_line_and_2(capsys, command, none, tmp_path / "a" / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "taken", ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler"]
)
def test_a_file_and_a_folder_in_each_others_place_are_one_line(taken, run, tmp_path, capsys):
    path = tmp_path / "out" / taken
    if taken == "scheduler":
        path.parent.mkdir()
        path.write_text("mine")
    else:
        path.mkdir(parents=True)
    assert taken in one_line_and_2(capsys, "export", run[0].workdir, tmp_path / "out", "--overwrite")
    assert path.is_file() == (taken == "scheduler")


def test_a_run_without_dropped_labels_is_not_guided(tmp_path):
    """Nor is one without classes asked for any."""
    session, _ = made(tmp_path / "run", label_dropout=0.0)
    pipe = hub.load_pipeline(session.workdir)
    assert np.isfinite(pipe(2, 4, labels=3)).all()
    with pytest.raises(ValueError, match="cannot be guided: it never saw images without one"):
        pipe(2, 4, guidance_scale=2.0)
    session, _ = made(tmp_path / "other", class_conditional=False)
    pipe = hub.load_pipeline(session.workdir)
    with pytest.raises(ValueError, match="labels are given, but this network was trained without classes"):
        pipe(2, 4, labels=3)
    with pytest.raises(ValueError, match="cannot be guided: it was trained without classes"):
        pipe(2, 4, guidance_scale=2.0)


def test_an_exported_run_with_classes_draws_the_same(run, tmp_path):
    session, _ = run
    assert hub_command(["export", str(session.workdir), str(tmp_path / "out")]) == 0
    drawn = [hub.load_pipeline(source)(2, 4, labels=[3, 1]) for source in (session.workdir, tmp_path / "out")]
    np.testing.assert_array_equal(*drawn)
    assert np.abs(drawn[0] - hub.load_pipeline(session.workdir)(2, 4, labels=[5, 2])).max() > 1e-4
