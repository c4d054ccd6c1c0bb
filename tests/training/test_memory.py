import jax
import pytest

from diffusion_jax.training import loop, memory, sharding
from tests.training import toy

MESH = sharding.make_mesh(devices=jax.devices()[:2])
NEEDED = {1: 900, 2: 500, 4: 300, 8: 250}


class Compiled:
    """What a compiler says of a step that holds 200 bytes of state, updated in place, and so much beside it."""

    argument_size_in_bytes, output_size_in_bytes, alias_size_in_bytes = 200, 200, 200

    def __init__(self, parts):
        self.temp_size_in_bytes = NEEDED[parts] - 200

    def memory_analysis(self):
        return self


@pytest.mark.parametrize(("limit", "parts"), [(1000, 1), (900, 1), (899, 2), (300, 4), (260, 8)])
def test_as_few_parts_as_fit(limit, parts):
    tried = []
    found, compiled = memory.fit_batch(lambda n: (tried.append(n), Compiled(n))[1], MESH, 16, limit)
    assert found == parts and memory.needed(compiled) == NEEDED[parts]
    assert tried == [n for n in NEEDED if n <= parts]  # 8 rows a device: its divisors, in order


def test_one_example_too_many_is_said():
    with pytest.raises(
        ValueError, match=r"accumulation_steps is 0, but one example a device takes 0.00 of .*mesh.fsdp"
    ):
        memory.fit_batch(Compiled, MESH, 16, 100)


def test_devices_that_do_not_tell_are_named():
    with pytest.raises(ValueError, match=r"accumulation_steps is 0, .*kind 'cpu' does not tell how much it has"):
        memory.available(MESH)


def test_a_run_cuts_its_batch_by_the_memory(tmp_path, monkeypatch, capfd):
    wide = {"method": toy.Denoiser(width=1024), "batches": toy.Counter(batch_size=1024), "num_steps": 2}
    sizes = []
    real = memory.needed
    monkeypatch.setattr(memory, "needed", lambda compiled: (sizes.append(real(compiled)), sizes[-1])[1])
    monkeypatch.setattr(memory, "available", lambda mesh: sizes[0] - 1 if sizes else 1 << 40)
    with monkeypatch.context() as patch:
        patch.setattr(memory, "available", lambda mesh: 1 << 40)
        whole = toy.train(tmp_path / "whole", accumulation_steps=0, **wide)
    wide["batches"] = toy.Counter(batch_size=1024)
    cut = toy.train(tmp_path / "cut", accumulation_steps=0, **wide)
    assert "the batch in 1 parts of 1024" in (told := capfd.readouterr().err) and "parts of 512" in told
    assert sizes[-1] < 0.8 * sizes[0]
    a, b = (run.state.params["hidden"]["kernel"] for run in (whole, cut))
    assert jax.numpy.allclose(a, b, atol=1e-5)


def test_a_negative_number_of_parts_is_named():
    with pytest.raises(ValueError, match="accumulation_steps is -1; it must be 0 or more"):
        loop.TrainingOptions(num_steps=1, accumulation_steps=-1)
