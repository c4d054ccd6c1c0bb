"""The plan of memory: small networks here; DiT-XL and SDXL, and the compiler for TPUs, with -m slow."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import memory_plan, topology
from benchmarks.memory_plan import GIB, DoesNotFit, Layers, Memory
from diffusion_jax import config as experiment
from diffusion_jax.config import build
from diffusion_jax.training import sharding

REPO = Path(__file__).parents[2]
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu, TPUs' compiler")


def step(depth: int, devices: int) -> tuple:
    """Arguments of `compiled`: a narrow DiT, each of whose kernels splits over eight devices."""
    config = experiment.default()
    config.data.image_size, config.data.channels = 8, 4
    config.model.update({"name": "dit", "width": 64, "depth": depth, "num_heads": 2})
    return build.model(config, build.of_classes(None)), {"image": ((8, 8, 4), "float32")}, mesh_of(devices), 16


def mesh_of(devices: int):
    return sharding.make_mesh(*memory_plan.mesh_shape(devices, 1), devices=jax.devices()[:devices])


def test_the_line_through_few_blocks_is_followed_to_all():
    planned = memory_plan.planned("dit_xl", lambda depth: Memory(10 + 3 * depth, 7 + 2 * depth))
    assert planned == Memory(10 + 3 * 28, 7 + 2 * 28)
    planned = memory_plan.planned("sdxl", lambda depth: Memory(5 + 2 * depth[1] + 3 * depth[2], depth[2]))
    assert planned == Memory(5 + 2 * 2 + 3 * 10, 10)


def test_one_loop_over_the_blocks_is_compiled_whole():
    asked = []
    for model in ("dit_xl", "sdxl"):
        memory_plan.planned(model, lambda depth: asked.append(depth) or Memory(0, 0), unrolled=False)
    assert asked == [28, (1, 2, 10)]


@pytest.mark.parametrize(
    ("devices", "tensor", "shape"), [(1, 1, (1, 1, 1)), (8, 1, (1, 8, 1)), (256, 1, (4, 64, 1)), (256, 4, (1, 64, 4))]
)
def test_meshes_of_the_plan_use_every_device(devices, tensor, shape):
    assert memory_plan.mesh_shape(devices, tensor) == shape


def test_state_is_split_over_the_devices():
    one, two, eight = (memory_plan.held(memory_plan.shapes(*step(1, devices))[0]) for devices in (1, 2, 8))
    # Biases and other arrays of fewer than 1,024 numbers are held by every device.
    assert one / 2 < two < one / 2 * 1.05
    assert one / 8 < eight < one / 8 * 1.2


@pytest.mark.slow
def test_followed_and_compiled_are_the_same():
    one, two, four = (memory_plan.compiled(*step(depth, 8)) for depth in (1, 2, 4))
    followed = one + (two + one.times(-1)).times(3)
    assert followed.state == four.state
    assert followed.temporary == pytest.approx(four.temporary, rel=0.03)


def test_what_does_not_fit_is_told_in_a_line():
    sentence = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (27.99G) exceeds "
        "available HBM (15.75G)."
    )
    assert memory_plan.refusal(DoesNotFit(1.0, sentence)) == "does not fit: 27.99G of 15.75G"
    assert memory_plan.refusal(DoesNotFit(1.0, "other words")) == "does not fit: other words"


@pytest.mark.parametrize(
    ("installed", "generation", "count", "match"),
    [
        (False, "v5e", 8, r"^topology needs .*: pip install \"jax\[tpu\]\"$"),
        (True, "v2", 8, "topology is 'v2'; it must be one of v5e, v6e, v5p"),
        (True, "v5e", 3, "devices is 3; slices of v5e have 1, 4, 8, 16, 32, 64, 128, 256"),
    ],
)
def test_slices_that_cannot_be_had_are_named(monkeypatch, installed, generation, count, match):
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: object() if installed else None)
    with pytest.raises(ValueError, match=match):
        next(memory_plan.table("dit_xl", [count], 1, 1, Layers(), generation))


def rows(*options: str) -> list[list[float]]:
    """The numbers of each line: devices, data, fsdp, tensor, batch, state, step, in all, seconds."""
    command = [sys.executable, "-m", "benchmarks.memory_plan", *options]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    return [
        list(map(float, line.removesuffix(" fits").replace(" x ", " ").split()))
        for line in done.stdout.splitlines()[3:]
    ]


# Parameters in millions: Peebles & Xie 2023, table 1, and diffusers' SDXL. Four of each in float32 are held: the
# parameters, their average, and Adam's two moments.
@pytest.mark.slow
@pytest.mark.parametrize(("model", "depth", "millions"), [("dit_xl", 28, 675), ("sdxl", (1, 2, 10), 2567.5)])
def test_the_state_of_published_networks_is_split_over_the_devices(model, depth, millions):
    method, example = memory_plan.BUILDERS[model](depth, Layers())
    one, eight = (memory_plan.held(memory_plan.shapes(method, example, mesh_of(devices), 8)[0]) for devices in (1, 8))
    assert one == pytest.approx(4 * 4 * millions * 1e6, rel=0.01)
    assert eight == pytest.approx(one / 8, rel=0.01)


@pytest.mark.slow
def test_the_program_compiles_whole_dit_xl_for_fake_devices():
    (eight,) = rows("--devices", "8", "--batch_per_device", "1")
    assert eight[:5] == [8, 1, 8, 1, 8]
    assert eight[5] == pytest.approx(4 * 4 * 675e6 / GIB / 8, rel=0.01) and eight[6] > 0


@pytest.mark.slow
@needs_libtpu
def test_the_compiler_for_tpus_takes_the_whole_train_step():
    eight, many = rows("--topology", "v5e", "--devices", "8,256", "--batch_per_device", "4")
    assert eight[5] == pytest.approx(4 * 4 * 675e6 / GIB / 8, rel=0.01)
    assert many[5] == pytest.approx(eight[5] / 8, rel=0.05)
    assert eight[7] < 16
