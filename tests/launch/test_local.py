"""launch/local.sh around an environment that is there already: what it starts, and with which arguments."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LOCAL_SH = Path(__file__).parents[2] / "launch" / "local.sh"


@pytest.fixture
def local(tmp_path):
    """Runs local.sh where bin/python prints how it was called, and prepare_environment its extra."""
    shutil.copy(LOCAL_SH, tmp_path)
    (tmp_path / "environment.sh").write_text(
        f"VENV={tmp_path}\nREPO={tmp_path}\n"
        'fail() { echo "$2" >&2; exit "$1"; }\nprepare_environment() { echo "extra=$1"; }\n'
    )
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\necho python "$GLIBC_TUNABLES" "$@"\n')
    python.chmod(0o755)

    def run(*arguments, glibc=None):
        environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
        environment |= {} if glibc is None else {"GLIBC_TUNABLES": glibc}
        command = ["bash", str(tmp_path / "local.sh"), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    ("given", "expected"), [(None, "glibc.malloc.hugetlb=1"), ("glibc.malloc.tcache_count=0",) * 2]
)
def test_huge_pages_are_asked_for_unless_the_user_says_otherwise(local, given, expected):
    said = local("--config=some.py:xs", "--mode", "train", glibc=given).stdout.split()
    main = ["-P", "-m", "diffusion_jax.main", "--config=some.py:xs", "--mode", "train"]
    assert said == ["extra=", "python", expected, *main]


@pytest.mark.parametrize(
    ("command", "module"),
    [
        ("metrics", "diffusion_jax.metrics"),
        ("hub", "diffusion_jax.hub"),
        ("encode", "diffusion_jax.jobs.encode"),
        ("benchmarks.memory", "benchmarks.memory"),
    ],
)
def test_every_command_runs_in_the_same_environment(local, command, module):
    said = local(command, "--out", "a b").stdout.split()
    assert said[:2] == ["extra=", "python"] and said[3:] == ["-P", "-m", module, "--out", "a", "b"]


def test_tensorflow_is_installed_for_the_one_command_that_needs_it(local):
    said = local("prepare", "cifar10").stdout.split()
    assert said[:2] == ["extra=prepare", "python"] and said[-2:] == ["diffusion_jax.data.prepare", "cifar10"]


def test_a_command_that_is_none_is_one_line(local):
    result = local("metric")
    assert result.returncode == 2 and "metrics, hub" in result.stderr and len(result.stderr.splitlines()) == 1
