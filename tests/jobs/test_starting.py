"""A run that begins with the parameters of another run, of a folder of the hub or of nothing that fits."""

import jax
import numpy as np
import pytest

from diffusion_jax import hub
from diffusion_jax.config import ConfigError
from diffusion_jax.jobs import run, starting
from diffusion_jax.jobs.session import Session
from diffusion_jax.training import subset
from tests.configs import tiny


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("source") / "run"
    assert run.run(tiny.get_config(), workdir, ("train",), command="") == 0
    return workdir


def continued(source, trainable=()):
    config = tiny.get_config()
    config.init_from, config.training.trainable, config.training.num_steps = str(source), trainable, 5
    config.optimizer.warmup_steps = 0
    return config


def test_a_part_is_trained_of_what_another_run_has(source, tmp_path, capsys):
    """Taken as averaged there; what is not trained keeps its bits, is written once, and is drawn with."""
    _, theirs = Session(tiny.get_config(), source).parameters
    names = subset.flat(theirs)
    last = next(name for name in names if name.endswith("kernel")).rpartition("/")[0]
    config = continued(source, (f"{last}/*",))
    assert run.run(config, tmp_path / "run", ("train", "sample", "evaluate", "report"), command="") == 0
    said = capsys.readouterr().err
    assert f"took {len(names)} of {len(names)} arrays" in said and "are new" not in said and "frozen ones" in said
    session = Session(config, tmp_path / "run")
    ours = subset.flat(session.parameters[1])
    assert ours.keys() == names.keys()
    moved = {name for name in names if (np.asarray(ours[name]) != np.asarray(names[name])).any()}
    assert moved == {f"{last}/kernel", f"{last}/bias"} & names.keys()
    size = sum(path.stat().st_size for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file())
    whole = sum(path.stat().st_size for path in (source / "checkpoints" / "40").rglob("*") if path.is_file())
    assert size < whole
    # others who open the run have all of it
    loaded = subset.flat(hub.load(tmp_path / "run")[1])
    jax.tree.map(np.testing.assert_array_equal, loaded, {name: np.asarray(leaf) for name, leaf in ours.items()})
    assert starting.start(session) is None  # it has begun
    assert run.run(continued(tmp_path / "run"), tmp_path / "third", ("train",), command="") == 0
    assert f"took {len(names)} of {len(names)} arrays" in capsys.readouterr().err


def test_what_does_not_fit_is_new_and_is_said(source, tmp_path, capsys):
    config = continued(source)
    config.data.flip = False
    config.method.class_conditional = False
    session = Session(config, tmp_path / "run")
    begin = starting.start(session)
    said = capsys.readouterr().err
    assert "are new" not in said and "; left 1 of it: " in said  # the table of the classes
    shapes = jax.eval_shape(session.model.init, jax.random.key(0), {"image": np.zeros((1, 8, 8, 1), np.float32)})
    params = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape), shapes)
    theirs = subset.flat(Session(tiny.get_config(), source).parameters[1])
    for name, leaf in subset.flat(begin(params)).items():
        np.testing.assert_array_equal(leaf, theirs[name])


def test_a_folder_of_the_hub_fits_a_network_of_ours(tmp_path, capsys):
    config = tiny.get_config()
    config.model.update({"name": "unet", "channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1, "norm_groups": 4})
    config.method.class_conditional = False
    network = Session(config, tmp_path / "a").model.network
    params = network.init(jax.random.key(3), np.zeros((1, 8, 8, 1)), np.zeros(1, np.int32))["params"]
    hub.save(network, params, tmp_path / "unet")
    config.init_from = str(tmp_path / "unet")
    session = Session(config, tmp_path / "run")
    begin = starting.start(session)
    others = jax.tree.map(jax.numpy.zeros_like, params)
    jax.tree.map(np.testing.assert_array_equal, begin(others), params)
    assert "(new" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"init_from": "nowhere"}, "config.init_from is 'nowhere': "),
        ({"training": {"trainable": ("xx",)}}, "config.training.trainable has 'xx', which matches no parameter"),
        ({"model": {"name": "unet", "channels": 8, "norm_groups": 4}}, "none of its .* arrays has the name and shape"),
    ],
)
def test_what_cannot_be_begun_with_is_refused_in_a_line(source, tmp_path, change, said):
    config = continued(source)
    config.update(change)
    with pytest.raises(ConfigError, match=said):
        run.run(config, tmp_path / "run", ("train",), command="")
    assert not (tmp_path / "run").exists()
