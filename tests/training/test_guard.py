"""Updates that are left out, the step kept for replay, and losses that stand out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffusion_jax.training import guard, loop, replay, sharding, state, step
from tests.training import toy


class Stumbling(toy.Denoiser):
    """The loss of examples 3 and 7 is not a number at the given steps (the number of updates before)."""

    def __init__(self, *steps, scale=jnp.nan):
        super().__init__()
        self.steps, self.scale = jnp.asarray(steps), scale

    def loss(self, params, batch, key, step):
        stumbles = jnp.any(self.steps == step)
        bad = jnp.isin(batch["position"], jnp.asarray([3, 7]))[:, None]
        image = jnp.where(bad & stumbles, self.scale * batch["image"], batch["image"])
        return super().loss(params, {**batch, "image": image}, key, step)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def states(workdir, method, **options):
    """The state after every step."""
    kept = []
    real = loop.make_train_step

    def noting(*args, **kwargs):
        run = real(*args, **kwargs)

        class Compiled:
            def lower(self, *a):
                return self

            def compile(self):
                return lambda *a: (kept.append(jax.device_get((out := run(*a))[0])), out)[1]

        return Compiled()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "make_train_step", noting)
        try:
            toy.train(workdir, method, **options)
        except loop.DivergenceError as error:
            return kept, str(error)
    return kept, None


@pytest.fixture(scope="module")
def stumbled(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("stumbled")
    kept, error = states(workdir, Stumbling(5, 6))
    assert error is None
    return workdir, kept


def test_a_bad_update_is_left_out_and_counted(stumbled):
    workdir, kept = stumbled
    before, first, second, after = kept[4:8]
    for skipped in (first, second):
        parts = ("params", "opt_state", "ema_params")
        for name in parts:
            jax.tree.map(np.testing.assert_array_equal, getattr(skipped, name), getattr(before, name))
    assert [int(s.bad_steps) for s in (before, first, second, after)] == [0, 1, 2, 0]
    assert [int(s.step) for s in (before, first, second, after)] == [5, 6, 7, 8]
    assert np.abs(after.params["hidden"]["kernel"] - before.params["hidden"]["kernel"]).max() > 1e-5
    assert [line["bad_steps"] for line in lines(workdir)] == [0, 2, 0]
    assert all(np.isfinite(value) for line in lines(workdir) for value in line.values())


def test_resumed_in_the_middle_of_bad_steps_it_ends_the_same(tmp_path, stumbled, monkeypatch):
    for number in (6, 99):
        monkeypatch.setattr(loop.Interruption, "requested", lambda self, step, number=number: step == number)
        result = toy.train(tmp_path, Stumbling(5, 6))
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(result.state), stumbled[1][-1])
    assert [line["loss"] for line in lines(tmp_path)] == [line["loss"] for line in lines(stumbled[0])]


def test_too_many_in_a_row_stop_at_the_state_of_the_last(tmp_path):
    kept, error = states(tmp_path, Stumbling(3, 5, 6, 7, scale=jnp.inf), max_bad_steps=2, log_every=100)
    assert "diverged before step 8 (loss or gradient is not finite)" in error and "--mode replay" in error
    # Steps that were started before the host knew changed nothing.
    assert len(kept) > 8
    jax.tree.map(np.testing.assert_array_equal, kept[7], kept[-1])
    assert int(kept[-1].step) == 7

    again, mesh, method = read_replay(tmp_path, kept[-1]), sharding.make_mesh(), Stumbling(7, scale=jnp.inf)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(again.state), kept[-1])
    batches = toy.Counter()
    for _ in range(8):
        batch = next(batches)
    np.testing.assert_array_equal(again.batch["image"], batch["image"])
    assert jax.random.key_data(again.key).tolist() == jax.random.key_data(run_key()).tolist()
    told = "\n".join(replay.diagnose(method, optax.sgd(0.1), mesh, again, accumulation_steps=2))
    assert "batch (input): finite" in told and "parameters (input): finite" in told
    assert "gradient: not finite in 3 of 3 groups\n  hidden/bias: " in told
    assert "updated parameters" not in told
    assert "first: " in told


def run_key():
    return jax.random.fold_in(jax.random.key(0), 1)


def read_replay(workdir, like):
    mesh = sharding.make_mesh()
    shapes = sharding.sharded_shapes(mesh, jax.eval_shape(lambda: like))
    return replay.load(workdir, shapes, sharding.global_batch(mesh, next(toy.Counter())))


def test_a_replay_names_examples_groups_and_the_operation(tmp_path):
    kept, _ = states(tmp_path, Stumbling(4), max_bad_steps=0)
    again = read_replay(tmp_path, kept[-1])
    told = list(replay.diagnose(Stumbling(4), optax.sgd(0.1), sharding.make_mesh(), again))
    assert told[0] == "step 5 again, from the state after 4 steps"
    assert "loss nan" in told
    assert "loss: 2 of 16 values are not finite, of the examples 3, 7" in told
    assert not any(line.startswith("loss_even") for line in told)  # those examples have no weight in it
    assert "  output/kernel: 2048 of 2048" in told
    assert "nan" in told[-1] and "test_guard.py" in told[-1] and "self.scale" in told[-1]
    # the state of a run that is well repeats nothing
    well = list(replay.diagnose(Stumbling(), optax.sgd(0.1), sharding.make_mesh(), again))
    assert well[-1].startswith("everything is finite")


def test_parameters_that_overflow_are_never_kept():
    huge = optax.sgd(1e38)
    method, mesh = toy.Denoiser(), sharding.make_mesh(devices=jax.devices()[:1])
    batch = sharding.global_batch(mesh, next(toy.Counter()))
    batch["image"] *= 1e3
    start = jax.jit(lambda: state.create(method.init(jax.random.key(0), batch), huge))()
    before = jax.device_get(start)
    run = step.make_train_step(method, huge, lambda _: 0.5, mesh, sharding.state_shardings(mesh, start))
    doubled = jax.tree.map(lambda leaf: leaf * 100, start.params)
    after, sums = run(start.replace(params=doubled), batch, jax.random.key(0))
    assert np.isfinite(float(sums["bad_steps"][0])) and float(sums["bad_steps"][0]) == 1
    assert int(after.bad_steps) == 1
    np.testing.assert_array_equal(after.params["hidden"]["kernel"], 100 * before.params["hidden"]["kernel"])


def test_debug_stops_at_once_and_says_why(tmp_path, capfd):
    with pytest.raises(loop.DivergenceError, match="before step 3 "):
        toy.train(tmp_path, Stumbling(2), debug=True)
    told = capfd.readouterr().err
    assert "of the examples 3, 7" in told and "first: " in told


def test_nothing_to_replay_is_said(tmp_path):
    with pytest.raises(ValueError, match="there is nothing to replay"):
        read_replay(tmp_path, toy.train(tmp_path, num_steps=1).state)


@pytest.mark.parametrize("cut", [None, 70, 150])
def test_spikes_are_found_whether_resumed_or_not(cut):
    rng = np.random.default_rng(0)
    losses = 1 + 0.1 * rng.normal(size=300)
    losses[[20, 100, 101, 250]] = [9, 5, 6, 2.5]  # the first before there is anything to compare with
    detector = guard.SpikeDetector()
    for number, loss in enumerate(losses, 1):
        if number == cut:
            detector = guard.SpikeDetector(json.loads(json.dumps(detector.state())))
        detector.add(number, loss, 2.0)
    assert [spike.step for spike in detector.spikes] == [101, 102, 251]
    spike = detector.spikes[0]
    assert (spike.loss, spike.grad_norm) == (5, 2) and spike.typical_loss == pytest.approx(1, abs=0.05)
    assert spike.deviations == pytest.approx(40, rel=0.3)


class Spiking(toy.Denoiser):
    """One loss is ten times what it would be."""

    def loss(self, params, batch, key, step):
        value, metrics = super().loss(params, batch, key, step)
        times = jnp.where(step == 70, 10, 1)
        return value * times, {"loss": (metrics["loss"][0] * times, metrics["loss"][1])}


def test_a_run_reports_its_spikes(tmp_path, capfd):
    toy.train(tmp_path, Spiking(), num_steps=80, log_every=40, checkpoint_every=75, learning_rate=1e-4)
    [spike] = json.loads((tmp_path / "spikes.json").read_text())
    assert spike["step"] == 71 and 5 < spike["loss"] / spike["typical_loss"] < 20
    assert 0.5 < spike["typical_loss"] < 3  # of an example
    told = capfd.readouterr().err
    assert "step 71: loss" in told and "the loss stood out at 1 steps, most at step 71" in told
