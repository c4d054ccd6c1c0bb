"""What every job does first."""

import pytest

from diffusion_jax.config import ConfigError
from diffusion_jax.jobs import run
from tests.configs import tiny


@pytest.mark.parametrize("class_conditional", [True, False])
def test_data_that_are_not_there_leave_the_config_of_a_run_alone(class_conditional, tmp_path):
    """An unconditional network asks nothing of the data, so that only the first job would have missed them."""
    (tmp_path / "config.json").write_text("the run's")
    config = tiny.get_config()
    config.method.class_conditional = class_conditional
    config.sampling.guidance_scale = 1.0
    config.data.name, config.data.path = "image_folder", str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"config.data.path .*nowhere"):
        run.run(config, tmp_path, ("train",), command="")
    assert (tmp_path / "config.json").read_text() == "the run's"


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_run_whose_config_cannot_be_read_is_left_alone(content, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"config\.json: .*name another --workdir"):
        run.run(tiny.get_config(), tmp_path, ("train",), command="")
    assert (tmp_path / "config.json").read_text() == content
