"""Autoguidance from a config: the guide is another run, or this one at an earlier step, in its work directory."""

import functools

import jax
import numpy as np
import pytest

from diffusion_jax.config import ConfigError
from diffusion_jax.jobs import run
from diffusion_jax.jobs.generate import Generator
from diffusion_jax.jobs.session import Session
from diffusion_jax.training import ema_snapshots, sharding
from tests.configs import tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The work directory of a run of four steps that kept its averages at the second and the last."""
    workdir = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", functools.partial(sharding.make_mesh, devices=jax.devices()[:1]))
        assert run.run(config_of(), workdir, ("train",), command="") == 0
        yield workdir


def config_of(**sampling):
    config = tiny.get_config()
    config.training.num_steps = 4
    config.training.checkpoint_every = 2
    config.optimizer.warmup_steps = 0
    config.posthoc_ema.snapshot_every = 2
    config.sampling.guidance_scale = 1.0
    config.sampling.batch_size = 4
    config.sampling.update(sampling)
    return config


def test_a_run_is_guided_by_itself_at_an_earlier_step(trained):
    guide = {"guide": str(trained), "guide_step": 2, "guide_ema_width": 0.1}
    session = Session(config_of(ema_width=0.1, guidance_scale=3.0, **guide), trained)
    early, late = (ema_snapshots.reconstruct(trained, 0.1, shapes_of(session), step)[1] for step in (2, 4))
    jax.tree.map(np.testing.assert_array_equal, session.given["guide_params"], early)
    jax.tree.map(np.testing.assert_array_equal, session.parameters[1], late)
    images, _ = Generator(session).draw(4)

    def of(**sampling):
        return Generator(Session(config_of(**sampling), trained)).draw(4)[0]

    assert (images != of(ema_width=0.1)).any()
    # Guided by what it is itself, it is not moved.
    same = of(ema_width=0.1, guidance_scale=3.0, guide=str(trained), guide_ema_width=0.1)
    assert np.abs(same.astype(int) - of(ema_width=0.1)).max() <= 1


def test_without_a_width_the_guide_is_its_newest_checkpoint(trained):
    session = Session(config_of(guidance_scale=2.0, guide=str(trained)), trained)
    jax.tree.map(np.testing.assert_array_equal, session.given["guide_params"], session.parameters[1])


def test_a_guide_that_was_not_kept_is_one_line(trained):
    guide = {"guide": str(trained), "guide_step": 3, "guide_ema_width": 0.1}
    session = Session(config_of(guidance_scale=2.0, **guide), trained)
    with pytest.raises(ValueError, match=r"step is 3, but there is no snapshot of it in .*; the nearest is") as caught:
        _ = session.given["guide_params"]
    assert "\n" not in str(caught.value)


def test_a_guide_for_other_images_is_refused(trained, tmp_path):
    config = config_of(guidance_scale=2.0, guide=str(trained))
    config.data.image_size = 16
    with pytest.raises(ConfigError, match=r"was trained with data.image_size 8, but here it is 16"):
        Session(config, tmp_path)
    config = config_of(guidance_scale=2.0, guide=str(trained))
    config.process.offset = 0.5
    with pytest.raises(ConfigError, match=r"was trained with process.offset 0.008, but here it is 0.5"):
        Session(config, tmp_path)


def shapes_of(session):
    params = session.parameters[1]
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params)
