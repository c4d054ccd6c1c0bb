import json
import signal

import jax
import numpy as np
import pytest

from diffusion_jax.training import loop, sharding
from diffusion_jax.training.checkpoints import CheckpointError
from tests.training import toy


def curve(workdir, *names):
    """name -> values of the lines of metrics.jsonl."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines] for name in names}


def checkpoints(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


REPORTED = ("step", "loss", "loss_even", "grad_norm", "learning_rate")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, toy.train(workdir)


def test_a_run_leaves_its_files(undisturbed):
    workdir, result = undisturbed
    assert int(result.state.step) == 12 and result.interrupted is None
    assert checkpoints(workdir) == [10, 12]
    lines = curve(workdir, *REPORTED, "steps_per_second", "images_per_second")
    assert lines["step"] == [4, 8, 12]
    assert lines["loss"][-1] < lines["loss"][0] and all(norm > 0 for norm in lines["grad_norm"])
    np.testing.assert_allclose(lines["learning_rate"], [0.01 * 3 / 6, 0.01, 0.01])  # of updates 4, 8, 12
    np.testing.assert_allclose(np.array(lines["images_per_second"]) / lines["steps_per_second"], 16, rtol=1e-5)
    timing = json.loads((workdir / "timing.json").read_text())
    assert timing["steps"] == 12 and timing["images"] == 12 * 16
    assert timing["images_per_second"] == pytest.approx(192 / timing["train_seconds"])
    assert "Total: 4,160" in (workdir / "parameters.txt").read_text()
    assert list((workdir / "tensorboard").iterdir())


@pytest.mark.parametrize("stops", [(1,), (4,), (5,), (7,), (3, 6, 11)])
def test_resumed_anywhere_the_end_is_the_same_to_the_bit(tmp_path, undisturbed, stops, monkeypatch):
    workdir, expected = undisturbed
    result = None
    for number in (*stops, 99):
        # A signal at a step, without the signal: what a process that starts anew finds is the same.
        monkeypatch.setattr(loop.Interruption, "requested", lambda self, step, number=number: step == number)
        result = toy.train(tmp_path)
        assert int(result.state.step) == min(number, 12)
    assert result is not None
    assert_same(result.state, expected.state)
    assert curve(tmp_path, *REPORTED) == curve(workdir, *REPORTED)


def test_a_finished_run_is_left_alone(undisturbed, monkeypatch):
    workdir, expected = undisturbed
    before = (workdir / "metrics.jsonl").read_text(), (workdir / "timing.json").read_text()
    (workdir / "timing.json").unlink()
    monkeypatch.setattr(loop, "make_train_step", None)  # nothing is compiled
    again = toy.train(workdir)
    assert_same(again.state, expected.state)
    assert ((workdir / "metrics.jsonl").read_text(), (workdir / "timing.json").read_text()) == before
    assert again.timing == expected.timing


def test_a_longer_run_continues_a_shorter_one(tmp_path, undisturbed):
    toy.train(tmp_path, num_steps=8)
    assert_same(toy.train(tmp_path).state, undisturbed[1].state)


@pytest.mark.parametrize("sizes", [{}, {"fsdp": 2}, {"fsdp": 4}, {"fsdp": 8}, {"fsdp": 2, "tensor": 2}])
def test_eight_devices_learn_what_one_learns(tmp_path, undisturbed, sizes):
    workdir, expected = undisturbed
    result = toy.train(tmp_path, mesh=sharding.make_mesh(**sizes))
    kernel = result.state.params["hidden"]["kernel"]
    assert kernel.addressable_shards[0].data.size * sizes.get("fsdp", 1) == kernel.size
    assert kernel.sharding == result.state.ema_params["hidden"]["kernel"].sharding
    for name, values in curve(workdir, "loss", "loss_even", "grad_norm").items():
        np.testing.assert_allclose(curve(tmp_path, name)[name], values, rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        jax.device_get(result.state.params),
        jax.device_get(expected.state.params),
    )


def test_a_run_moves_to_another_mesh(tmp_path, undisturbed):
    toy.train(tmp_path, num_steps=6)
    result = toy.train(tmp_path, mesh=sharding.make_mesh(fsdp=4))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        jax.device_get(result.state),
        jax.device_get(undisturbed[1].state),
    )


def test_accumulation_learns_the_same(tmp_path, undisturbed):
    toy.train(tmp_path, accumulation_steps=4, mesh=sharding.make_mesh(devices=jax.devices()[:2]))
    losses = curve(tmp_path, "loss")["loss"]
    np.testing.assert_allclose(losses, curve(undisturbed[0], "loss")["loss"], rtol=1e-5)


def test_the_seed_decides_parameters_and_noise(tmp_path):
    # One update at learning rate 0 returns the parameters as they were made.
    first, again, other = (
        toy.train(tmp_path / name, seed=seed, num_steps=1) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert_same(first.state, again.state)
    kernels = [jax.device_get(result.state.params["hidden"]["kernel"]) for result in (first, other)]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.1
    assert curve(tmp_path / "a", "loss") == curve(tmp_path / "b", "loss") != curve(tmp_path / "c", "loss")


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("log_every", [4, 100])
def test_divergence_is_never_saved(tmp_path, what, log_every):
    method = toy.Denoiser(diverge_at=9, diverging=what)
    with pytest.raises(loop.DivergenceError, match=r"diverged before step 10 .*the checkpoint of step 5 is kept") as e:
        toy.train(tmp_path, method, log_every=log_every, max_bad_steps=0)
    assert "\n" not in str(e.value) and "optimizer.learning_rate" in str(e.value)
    assert checkpoints(tmp_path) == [5]
    resumed = toy.train(tmp_path, num_steps=9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(resumed.state)))


def test_divergence_at_the_last_step_is_seen(tmp_path):
    with pytest.raises(loop.DivergenceError, match=r"diverged before step 3 .*nothing was saved yet"):
        toy.train(tmp_path, toy.Denoiser(diverge_at=2), num_steps=3, max_bad_steps=0)
    assert checkpoints(tmp_path) == []


def test_no_step_waits_for_the_host(tmp_path, monkeypatch):
    """Values come to the host where they are reported or saved, and not at other steps."""
    reads = []
    real = loop.metrics.to_sums
    monkeypatch.setattr(loop.metrics, "to_sums", lambda collected: (reads.append(1), real(collected))[1])
    toy.train(tmp_path, num_steps=12, log_every=6, checkpoint_every=12)
    assert len(reads) == 2


def test_another_model_is_refused(tmp_path):
    toy.train(tmp_path, num_steps=2)
    with pytest.raises(CheckpointError, match=r"hidden/kernel float32\[32, 64\] instead of float32\[32, 16\]"):
        toy.train(tmp_path, toy.Denoiser(width=16))
    assert checkpoints(tmp_path) == [2]


def test_a_batch_that_does_not_split_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"training.batch_size is 12; it must be a multiple of 8"):
        toy.train(tmp_path, batches=toy.Counter(batch_size=12), mesh=sharding.make_mesh())
    with pytest.raises(ValueError, match=r"checkpoint_every is 0; it must be 1 or more"):
        toy.train(tmp_path, checkpoint_every=0)


def test_handlers_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    toy.train(tmp_path, num_steps=1)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_data_errors_pass_and_leave_the_last_checkpoint(tmp_path):
    class Failing(toy.Counter):
        def __next__(self):
            if self.next_index == 8:
                raise ValueError("image 8 cannot be read")
            return super().__next__()

    with pytest.raises(ValueError, match="image 8 cannot be read"):
        toy.train(tmp_path, batches=Failing())
    assert checkpoints(tmp_path) == [5]
