"""Averages reconstructed from a run's snapshots, against sums over the parameters of all its updates."""

import jax
import numpy as np
import pytest

from diffusion_jax.training import checkpoints, ema_snapshots, sharding
from diffusion_jax.training.checkpoints import CheckpointError
from diffusion_jax.training.power_ema import PosthocEMA
from tests.training import toy
from tests.training.test_power_ema import weights

STEPS = 41
POSTHOC = PosthocEMA((0.05, 0.1), snapshot_every=2)


def onto(params, mesh=None):
    return sharding.sharded_shapes(mesh or sharding.make_mesh(devices=jax.devices()[:1]), params)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(work directory, final state, the parameters after each update)."""
    workdir = tmp_path_factory.mktemp("run")
    result = toy.train(workdir, num_steps=STEPS, posthoc_ema=POSTHOC, checkpoint_every=1, max_to_keep=STEPS)
    target = onto(result.state.params)
    history = [
        jax.device_get(checkpoints.restore_at(workdir / "checkpoints", step, "params", target))
        for step in range(1, STEPS + 1)
    ]
    return workdir, result.state, history


def average(history, sigma_rel):
    shares = weights(sigma_rel, len(history))
    return jax.tree.map(lambda *leaves: np.tensordot(shares, np.stack(leaves), 1), *history)


def distance(a, b):
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: np.abs(x - y).max(), jax.device_get(a), b)))


def test_snapshots_are_kept_where_asked_and_at_the_end(run):
    records = checkpoints.records(run[0] / ema_snapshots.FOLDER)
    assert list(records) == [*range(2, STEPS, 2), STEPS]
    assert records[4] == {"sigma_rels": [0.05, 0.1]}


def test_tracked_averages_are_those_of_the_definition(run):
    _, state, history = run
    for sigma_rel, profile in zip(POSTHOC.sigma_rels, state.profiles, strict=True):
        assert distance(profile, average(history, sigma_rel)) < 1e-6
    assert distance(state.profiles[0], average(history, 0.1)) > 1e-3


@pytest.mark.parametrize("step", [2, 20, STEPS])
@pytest.mark.parametrize("sigma_rel", POSTHOC.sigma_rels)
def test_a_tracked_average_is_itself(run, step, sigma_rel):
    workdir, state, history = run
    found, params = ema_snapshots.reconstruct(workdir, sigma_rel, onto(state.params), step)
    assert found == step
    assert distance(params, average(history[:step], sigma_rel)) < 1e-5


@pytest.mark.parametrize("sigma_rel", [0.07, 0.15])
def test_another_average_comes_close(run, sigma_rel):
    workdir, state, history = run
    step, params = ema_snapshots.reconstruct(workdir, sigma_rel, onto(state.params))
    assert step == STEPS
    expected = average(history, sigma_rel)
    nearest = min(distance(average(history, tracked), expected) for tracked in POSTHOC.sigma_rels)
    assert distance(params, expected) < 0.05 * nearest


def test_reconstruction_onto_other_devices(run):
    workdir, state, _ = run
    mesh = sharding.make_mesh(fsdp=4)
    _, split = ema_snapshots.reconstruct(workdir, 0.07, onto(state.params, mesh))
    _, whole = ema_snapshots.reconstruct(workdir, 0.07, onto(state.params))
    assert split["hidden"]["kernel"].sharding.spec == sharding.P(None, "fsdp")
    assert distance(split, jax.device_get(whole)) < 1e-6


def test_a_run_cut_off_behind_a_snapshot_ends_with_the_same_bits(tmp_path):
    class CutOff(toy.Counter):
        def __next__(self):
            if self.next_index == 9:
                raise ValueError("no more")
            return super().__next__()

    def train(name, **options):
        return toy.train(tmp_path / name, posthoc_ema=PosthocEMA((0.1,), 4), checkpoint_every=5, **options).state

    whole = train("whole")
    with pytest.raises(ValueError, match="no more"):
        train("cut", batches=CutOff())
    assert list(checkpoints.records(tmp_path / "cut" / ema_snapshots.FOLDER)) == [4, 8]  # the last checkpoint is 5
    resumed = train("cut")
    assert list(checkpoints.records(tmp_path / "cut" / ema_snapshots.FOLDER)) == [4, 8, 12]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(resumed), jax.device_get(whole))
    for sigma_rel in (0.1, 0.15):
        a, b = (
            ema_snapshots.reconstruct(tmp_path / name, sigma_rel, onto(whole.params))[1] for name in ("whole", "cut")
        )
        assert distance(a, jax.device_get(b)) == 0


def test_a_new_run_takes_nothing_from_an_old_one(tmp_path):
    """Snapshots of an earlier run in the same folder would be averaged with those of this one."""
    toy.train(tmp_path, posthoc_ema=PosthocEMA((0.1,), 4), seed=1)
    (tmp_path / "checkpoints").rename(tmp_path / "kept")
    toy.train(tmp_path, posthoc_ema=PosthocEMA((0.1,), 3), seed=2, num_steps=9)
    assert list(checkpoints.records(tmp_path / ema_snapshots.FOLDER)) == [3, 6, 9]


def test_what_cannot_be_reconstructed_is_named(tmp_path, run):
    workdir, state, _ = run
    target = onto(state.params)
    with pytest.raises(CheckpointError, match=r"ema_snapshots: does not exist; .*config.posthoc_ema.snapshot_every"):
        ema_snapshots.reconstruct(tmp_path, 0.1, target)
    with pytest.raises(ValueError, match=r"step is 31, but there is no snapshot of it in .*; the nearest is of 3[02]"):
        ema_snapshots.reconstruct(workdir, 0.1, target, step=31)
    with pytest.raises(ValueError, match=r"sigma_rel is 0.5; it must be above 0 and at most 0.2887"):
        ema_snapshots.reconstruct(workdir, 0.5, target)
    other = onto(toy.Denoiser(width=16).init(jax.random.key(0), next(toy.Counter())))
    with pytest.raises(CheckpointError, match="is of another model"):
        ema_snapshots.reconstruct(workdir, 0.1, other)
    damaged = workdir / ema_snapshots.FOLDER / "20"
    damaged.rename(tmp_path / "aside")
    damaged.mkdir()
    try:
        with pytest.raises(CheckpointError, match=r"ema_snapshots/20: cannot be read"):
            ema_snapshots.reconstruct(workdir, 0.1, target)
    finally:
        damaged.rmdir()
        (tmp_path / "aside").rename(damaged)
