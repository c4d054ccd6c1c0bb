"""What `platform.prepare` puts into the environment, each in a fresh process."""

import os
import subprocess
import sys

import pytest

# Two rounds of a block of memory larger than malloc keeps by itself; prints the page faults of the second.
PAGE_FAULTS = """
import resource
from diffusion_jax import platform
platform.prepare()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = b"x" * 200_000_000
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
FLAGS = "import os; from diffusion_jax import platform; platform.prepare(); print(os.environ['XLA_FLAGS'])"


def printed(program: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", program]
    environment = {**kept, "JAX_PLATFORMS": "cpu", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()


def test_flags_for_the_cpu():
    flags = printed(FLAGS)
    assert "-individual_convolution" in flags and "cse_barrier_expander" in flags


def test_the_users_flags_stay():
    flags = printed(FLAGS, XLA_FLAGS="--xla_disable_hlo_passes=other --xla_force_host_platform_device_count=3")
    assert flags.split()[:2] == ["--xla_disable_hlo_passes=other", "--xla_force_host_platform_device_count=3"]
    assert "cse_barrier_expander" not in flags and "-individual_convolution" in flags


# A user whom the system does not know has no home where HOME is unset; the other has a cache that is a file.
NO_HOME = """
import os, pwd
def unknown(uid):
    raise KeyError(uid)
pwd.getpwuid = unknown
os.environ.pop("HOME", None), os.environ.pop("XDG_CACHE_HOME", None)
"""
FILE_AS_CACHE = "import os; os.environ['XDG_CACHE_HOME'] = os.devnull"
COMPUTES = """
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)
from diffusion_jax import platform
platform.prepare()
import diffusion_jax.main, jax
print(os.environ.get("JAX_COMPILATION_CACHE_DIR"), jax.jit(lambda x: x + 1)(1))
"""


@pytest.mark.parametrize("user", [NO_HOME, FILE_AS_CACHE], ids=["no home", "no cache folder"])
def test_a_user_without_a_home_or_a_cache_folder(user):
    assert printed(f"{user}\n{COMPUTES}") == "None 2"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_kept_unless_the_user_has_set_malloc_up():
    pages = 200_000_000 // os.sysconf("SC_PAGE_SIZE")
    assert int(printed(PAGE_FAULTS)) < pages / 10
    assert int(printed(PAGE_FAULTS, MALLOC_TOP_PAD_="131072")) > pages / 2
