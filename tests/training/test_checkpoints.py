import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.training import optimizer, sharding, state
from diffusion_jax.training.checkpoints import CheckpointError, Checkpoints, restore_params

MESH = sharding.make_mesh(data=2, fsdp=4)


def make_state(seed=0, name="adam", **shapes):
    shapes = {"kernel": (32, 64), "bias": (64,), **shapes}
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    params = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=True) if s is not None}
    return state.create({"layer": params}, optimizer.make_optimizer(name)[0])


def target(like, mesh=MESH):
    return sharding.sharded_shapes(mesh, like)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def write(directory, *steps, **options):
    with Checkpoints(directory, max_to_keep=5) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step, **options), {"next_index": step}, {"seconds": step / 3})


def restore(directory, like=None):
    with Checkpoints(directory, max_to_keep=5) as checkpoints:
        return checkpoints.restore(target(make_state() if like is None else like))


def steps(directory):
    return sorted(path.name for path in directory.iterdir())


def damage(directory, step, kind="truncate", every=2000):
    """Cuts the files that hold the arrays short, or flips a bit of them, one in so many bytes."""
    # Orbax may leave the arrays with the process that wrote them, or copy them to the common folder.
    state = directory / str(step) / "state"
    for path in (*(state / "ocdbt.process_0" / "d").iterdir(), *(state / "d").iterdir()):
        data = bytearray(path.read_bytes())
        if kind == "truncate":
            data = data[:100]
        for place in range(min(500, every), len(data) - min(500, every), every):
            data[place] ^= kind == "flip"
        path.write_bytes(data)


def test_everything_comes_back_onto_any_mesh(tmp_path):
    write(tmp_path, 3)
    for mesh in (MESH, sharding.make_mesh(devices=jax.devices()[:1]), sharding.make_mesh(fsdp=8)):
        shapes = target(make_state(), mesh)
        with Checkpoints(tmp_path, 5) as checkpoints:
            restored = checkpoints.restore(shapes)
        assert restored is not None and restored.step == 3
        assert_same(restored.state, make_state(3))
        assert jax.tree.map(lambda x: x.sharding, restored.state) == jax.tree.map(lambda x: x.sharding, shapes)
        assert restored.batches == {"next_index": 3} and restored.record == {"seconds": 1.0}


def test_the_newest_is_restored_and_old_ones_go(tmp_path):
    with Checkpoints(tmp_path, max_to_keep=2) as checkpoints:
        for step in (1, 2, 10):
            checkpoints.save(step, make_state(step), None, {})
    assert steps(tmp_path) == ["10", "2"]
    restored = restore(tmp_path)
    assert restored is not None and restored.step == 10


def test_the_state_may_be_donated_while_it_is_written(tmp_path):
    overwrite = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0 - 1, tree), donate_argnums=0)
    saved = {"x": jax.random.normal(jax.random.key(0), (2048, 1024))}
    expected = jax.device_get(saved)
    with Checkpoints(tmp_path, 2) as checkpoints:
        checkpoints.save(1, saved, None, {})
        overwrite(saved)
    restored = restore(tmp_path, expected)
    assert restored is not None
    assert_same(restored.state, expected)


def test_without_checkpoints_a_run_starts_and_a_reader_stops(tmp_path):
    assert restore(tmp_path) is None
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match="there is no checkpoint"):
            restore_params(directory, target(make_state().params))
    assert not (tmp_path / "nowhere").exists()


def test_parameters_alone_need_no_optimizer(tmp_path):
    write(tmp_path, 4)
    shapes = target(make_state().params)
    step, params = restore_params(tmp_path, shapes)
    assert step == 4
    assert_same(params, make_state(4).params)
    with pytest.raises(CheckpointError, match="left over: ema_params/layer/kernel"):
        restore_params(tmp_path, {"layer": {"bias": shapes["layer"]["bias"]}})


@pytest.mark.parametrize("kind", ["truncate", "flip"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, capfd, kind):
    write(tmp_path, 1, 2)
    damage(tmp_path, 2, kind)
    step, params = restore_params(tmp_path, target(make_state().params))
    assert step == 1 and steps(tmp_path) == ["1", "2"]  # who only reads leaves everything as it is
    assert_same(params, make_state(1).params)
    capfd.readouterr()
    with Checkpoints(tmp_path, 5) as checkpoints:
        restored = checkpoints.restore(target(make_state()))
        assert restored is not None and restored.step == 1
        assert_same(restored.state, make_state(1))
        error = capfd.readouterr().err
        assert error.startswith(f"warning: checkpoint {tmp_path / '2'} cannot be read (")
        assert error.endswith("); using step 1\n") and error.count("\n") == 1
        checkpoints.save(2, make_state(2), None, {})  # its place is free again
    assert steps(tmp_path) == ["1", "2", "unreadable-2"]
    restored = restore(tmp_path)
    assert restored is not None and restored.step == 2
    assert_same(restored.state, make_state(2))


@pytest.mark.parametrize("name", ["run/metadata", "state/_METADATA", "state/manifest.ocdbt", "run", "state"])
def test_a_missing_piece_is_damage(tmp_path, name):
    write(tmp_path, 1, 2)
    (tmp_path / "2" / name).rename(tmp_path / "elsewhere")
    restored = restore(tmp_path)
    assert restored is not None and restored.step == 1


def test_a_save_that_was_cut_off_is_not_a_checkpoint(tmp_path):
    write(tmp_path, 1)
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    restored = restore(tmp_path)
    assert restored is not None and restored.step == 1
    assert steps(tmp_path) == ["1"]


def test_nothing_readable_is_an_error_and_not_a_new_start(tmp_path, capfd):
    write(tmp_path, 1, 2)
    damage(tmp_path, 1)
    damage(tmp_path, 2)
    with pytest.raises(CheckpointError, match=r"no checkpoint can be read \(2: .*; 1: ") as error:
        restore(tmp_path)
    assert "\n" not in str(error.value)
    assert steps(tmp_path) == ["1", "2"] and capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"extra": (2, 2)}, "missing: params/layer/extra, opt_state/"),
        ({"bias": None}, "left over: params/layer/bias, opt_state/"),
        ({"bias": (32,)}, r"different: params/layer/bias float32\[64\] instead of float32\[32\]"),
        ({"name": "sgd"}, "left over: opt_state/1/0/"),
    ],
)
def test_another_model_is_refused_by_name(tmp_path, capfd, like, message):
    write(tmp_path, 1, 2)
    with pytest.raises(CheckpointError, match=message) as error:
        restore(tmp_path, make_state(**like))
    assert str(error.value).startswith(f"checkpoint {tmp_path / '2'} is of another model or optimizer: ")
    assert "\n" not in str(error.value) and capfd.readouterr().err == ""
    assert steps(tmp_path) == ["1", "2"]


def test_long_lists_of_differences_are_cut(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"missing: .* and \d+ more"):
        restore(tmp_path, make_state(**{f"extra_{i}": (2,) for i in range(10)}))


def test_unusable_directories_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/checkpoints: cannot be created: Not a directory"):
        Checkpoints(tmp_path / "file" / "checkpoints", 2)
    with pytest.raises(CheckpointError, match="is read-only"):
        Checkpoints("/proc/self", 2)


def test_the_record_is_plain_json(tmp_path):
    write(tmp_path, 1)
    run = json.loads((tmp_path / "1" / "run" / "metadata").read_text())
    entry = run["arrays"]["params/layer/bias"]
    words = np.asarray(make_state(1).params["layer"]["bias"]).view(np.uint32)
    assert entry == {"shape": [64], "dtype": "float32", "checksum": int(words.sum(dtype=np.uint32))}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.int8, jnp.uint32, jnp.float16])
def test_a_changed_bit_changes_the_checksum_of_any_dtype(tmp_path, dtype):
    tree = {"x": jnp.arange(7).astype(dtype)}
    with Checkpoints(tmp_path, 5) as checkpoints:
        checkpoints.save(1, tree, None, {})
        restored = checkpoints.restore(target(tree))
    assert restored is not None
    assert_same(restored.state, tree)
    metadata = tmp_path / "1" / "run" / "metadata"
    run = json.loads(metadata.read_text())
    run["arrays"]["x"]["checksum"] ^= 4
    metadata.write_text(json.dumps(run))
    with pytest.raises(CheckpointError, match="the checksum of x is wrong"):
        restore(tmp_path, tree)
