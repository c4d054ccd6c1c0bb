"""What this project trained opens in the hub: the network of the config and the averaged parameters."""

import json

import jax
import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.jobs.session import Session
from diffusion_jax.training.checkpoints import Checkpoints
from tests.configs import tiny


@pytest.fixture
def run(tmp_path):
    """A run with one checkpoint, whose average is not its parameters."""
    config = tiny.get_config()
    config.model.update({"name": "unet", "channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1, "norm_groups": 4})
    config.model.update({"attention_resolutions": (4,)})
    session = Session(config, tmp_path / "run")
    session.make_workdir()
    session.write_config()
    batch = {"image": np.zeros((1, *session.model.image_shape), np.float32)}
    shapes = jax.eval_shape(session.model.init, jax.random.key(0), batch)
    params = jax.tree.map(lambda leaf: np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape), shapes)
    averaged = jax.tree.map(lambda leaf: leaf + 1, params)
    with Checkpoints(tmp_path / "run" / "checkpoints", max_to_keep=1) as checkpoints:
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


def test_a_run_without_a_checkpoint_is_one_line(run):
    session, _ = run
    for step in (session.workdir / "checkpoints").iterdir():
        step.rename(session.workdir / "elsewhere")
    with pytest.raises(ValueError, match="there is no checkpoint") as refused:
        hub.load(session.workdir)
    assert "\n" not in str(refused.value)
