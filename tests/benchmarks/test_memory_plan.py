"""The plan of memory: its arithmetic here, the compiled steps of DiT-XL with -m slow."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory_plan
from benchmarks.memory_plan import GIB, Memory

REPO = Path(__file__).parents[2]


def test_the_line_through_few_blocks_is_followed_to_all():
    planned = memory_plan.planned("dit_xl", lambda depth: Memory(10 + 3 * depth, 7 + 2 * depth))
    assert planned == Memory(10 + 3 * 28, 7 + 2 * 28)
    planned = memory_plan.planned("sdxl", lambda depth: Memory(5 + 2 * depth[1] + 3 * depth[2], depth[2]))
    assert planned == Memory(5 + 2 * 2 + 3 * 10, 10)


@pytest.mark.parametrize(
    ("devices", "tensor", "shape"), [(1, 1, (1, 1, 1)), (8, 1, (1, 8, 1)), (256, 1, (4, 64, 1)), (256, 4, (1, 64, 4))]
)
def test_meshes_of_the_plan_use_every_device(devices, tensor, shape):
    assert memory_plan.mesh_shape(devices, tensor) == shape


@pytest.mark.slow
def test_the_state_of_dit_xl_is_split_over_the_devices():
    command = [sys.executable, "-m", "benchmarks.memory_plan", "--devices", "1,8", "--batch_per_device", "1"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    one, eight = (list(map(float, line.replace(" x ", " ").split())) for line in done.stdout.splitlines()[2:])
    # 675 million parameters (Peebles & Xie 2023, table 1), their average, and Adam's two moments, in float32.
    assert one[5] == pytest.approx(4 * 4 * 675e6 / GIB, rel=0.01)
    assert eight[5] == pytest.approx(one[5] / 8, rel=0.01)
    assert one[4] == 1 and eight[4] == 8 and 0 < eight[6] < one[5]
