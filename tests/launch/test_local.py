"""launch/local.sh around an environment that is there already: what main is started with."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LOCAL_SH = Path(__file__).parents[2] / "launch" / "local.sh"


@pytest.mark.parametrize(
    ("given", "expected"), [(None, "glibc.malloc.hugetlb=1"), ("glibc.malloc.tcache_count=0",) * 2]
)
def test_huge_pages_are_asked_for_unless_the_user_says_otherwise(tmp_path, given, expected):
    shutil.copy(LOCAL_SH, tmp_path)
    (tmp_path / "environment.sh").write_text(f"VENV={tmp_path}\nREPO={tmp_path}\nprepare_environment() {{ :; }}\n")
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$GLIBC_TUNABLES" "$@"\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {} if given is None else {"GLIBC_TUNABLES": given}
    command = ["bash", str(tmp_path / "local.sh"), "--config=some.py:xs", "--mode", "train"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert said.split() == [expected, "-P", "-m", "diffusion_jax.main", "--config=some.py:xs", "--mode", "train"]
