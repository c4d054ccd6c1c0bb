"""Parameters that are not trained keep their bits, stand in no checkpoint, and are there for who restores."""

import jax
import numpy as np
import pytest

from diffusion_jax.training import ema_snapshots, optimizer, sharding, state, step, subset
from diffusion_jax.training.checkpoints import CheckpointError, arrays
from diffusion_jax.training.power_ema import PosthocEMA
from tests.training import toy

OUTPUT = ("output/*",)


def shapes_of(mesh=None):
    batch = next(toy.Counter())
    shapes = jax.eval_shape(toy.Denoiser().init, jax.random.key(0), batch)
    return sharding.sharded_shapes(mesh or sharding.make_mesh(devices=jax.devices()[:1]), shapes)


def test_split_and_merge_are_inverse():
    tree = {"a": {"kernel": 1, "bias": 2}, "b": {"kernel": 3}}
    trained, frozen = subset.split(tree, ("*/kernel",))
    assert (trained, frozen) == ({"a": {"kernel": 1}, "b": {"kernel": 3}}, {"a": {"bias": 2}})
    assert subset.merge(trained, frozen) == tree
    assert subset.split(tree, ()) == (tree, ()) == subset.split(tree, ("*",))
    with pytest.raises(ValueError, match=r"'c/\*', which matches no parameter; their names are such as a/kernel"):
        subset.split(tree, ("a/*", "c/*"))


def test_only_the_subset_moves_and_only_it_is_in_checkpoints(tmp_path):
    whole = toy.train(tmp_path / "whole", trainable=OUTPUT).state
    toy.train(tmp_path / "cut", num_steps=5, trainable=OUTPUT)
    resumed = toy.train(tmp_path / "cut", trainable=OUTPUT).state
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    init_key = jax.random.fold_in(jax.random.key(0), 0)
    first = jax.jit(toy.Denoiser().init)(init_key, next(toy.Counter()))
    jax.tree.map(np.testing.assert_array_equal, whole.frozen, {"hidden": first["hidden"]})
    assert abs(np.asarray(whole.params["output"]["kernel"]) - np.asarray(first["output"]["kernel"])).max() > 0.01
    assert not [name for name in arrays(tmp_path / "cut" / "checkpoints") if "hidden" in name]
    step_, restored = subset.restore_averaged(tmp_path / "cut", tmp_path / "cut" / "checkpoints", shapes_of())
    assert step_ == 12
    jax.tree.map(np.testing.assert_array_equal, restored, subset.merge(whole.ema_params, whole.frozen))
    assert subset.stored(tmp_path / "cut").keys() == {"hidden/kernel", "hidden/bias", "output/kernel"}


def test_a_run_whose_frozen_parameters_are_gone_is_refused(tmp_path):
    toy.train(tmp_path, num_steps=5, trainable=OUTPUT)
    (tmp_path / "frozen").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="frozen: there is no checkpoint"):
        toy.train(tmp_path, trainable=OUTPUT)


def test_snapshots_of_averages_come_with_what_was_not_trained(tmp_path):
    kept = PosthocEMA(snapshot_every=4)
    end = toy.train(tmp_path, trainable=OUTPUT, posthoc_ema=kept).state
    _, params = ema_snapshots.reconstruct(tmp_path, 0.1, shapes_of())
    jax.tree.map(np.testing.assert_array_equal, params["hidden"], end.frozen["hidden"])
    assert params["output"]["kernel"].shape == end.params["output"]["kernel"].shape


def test_frozen_parameters_are_arguments_that_are_split_over_the_devices():
    mesh = sharding.make_mesh(fsdp=8)
    method, update = toy.Denoiser(width=256), optimizer.make_optimizer("adam", learning_rate=1e-3)[0]
    batch = sharding.global_batch(mesh, next(toy.Counter(features=64)))

    def create():
        return state.initial(method, update, jax.random.key(0), batch, trainable=OUTPUT)

    shardings = sharding.state_shardings(mesh, jax.eval_shape(create))
    start = jax.jit(create, out_shardings=shardings)()
    kernel = start.frozen["hidden"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size / 8
    train_step = step.make_train_step(method, update, lambda _: 0.5, mesh, shardings)
    lowered = train_step.lower(start, batch, jax.random.key(1))
    assert kernel.shape in [leaf.shape for leaf in jax.tree.leaves(lowered.in_avals)]
    assert len(lowered.as_text()) < 200_000 and 'dense<"0x' not in lowered.as_text()  # no array in the program
    before = np.asarray(kernel)
    end, _ = train_step(start, batch, jax.random.key(1))
    np.testing.assert_array_equal(end.frozen["hidden"]["kernel"], before)
    assert "hidden" not in str(jax.tree.structure(end.opt_state)) and "output" in str(jax.tree.structure(end.opt_state))


def test_a_run_can_begin_with_other_parameters(tmp_path):
    def start(params):
        return jax.tree.map(lambda leaf: jax.device_put(leaf * 0 + 0.5, leaf.sharding), params)

    end = toy.train(tmp_path, trainable=("hidden/bias",), num_steps=2, learning_rate=1e-9, start=start).state
    np.testing.assert_allclose(end.frozen["output"]["kernel"], 0.5)
    np.testing.assert_allclose(end.ema_params["hidden"]["bias"], 0.5, atol=1e-6)

    def never(params):
        raise AssertionError("a run that resumes has its own")

    toy.train(tmp_path, trainable=("hidden/bias",), num_steps=3, learning_rate=1e-9, start=never)
