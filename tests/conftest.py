"""The environment of every test, set before anything imports JAX.

CPU with eight fake devices, so that sharding is tested on any machine, and XLA's persistent compilation
cache, so that only the first run of the suite pays for compilation.
"""

import collections
import os
import sys

import hypothesis

from diffusion_jax import platform

if "jax" in sys.modules:
    raise RuntimeError("JAX was imported before tests/conftest.py could configure it")

FAKE_DEVICES = 8

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={FAKE_DEVICES}"]
).strip()

platform.prepare()  # the compilation cache and XLA's flags, as in the command

os.environ.setdefault("MPLBACKEND", "Agg")
if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers already fill the cores: BLAS threads on top of them only take turns.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

# The first example of a property compiles, so time says nothing; the same examples every time, so that a
# failure is the change's doing.
hypothesis.settings.register_profile("diffusion_jax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("diffusion_jax")


def pytest_terminal_summary(terminalreporter):
    """How many faults tests/faults has tried, and how many of them the runs survived."""
    tried, survived = collections.Counter(), collections.Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, ()):
            faults = [value for name, value in report.user_properties if name == "fault"]
            tried.update(faults)
            survived.update(faults if outcome == "passed" else ())
    if tried:
        kinds = ", ".join(f"{fault} {survived[fault]} of {count}" for fault, count in sorted(tried.items()))
        terminalreporter.write_line(f"faults survived: {survived.total()} of {tried.total()} ({kinds})")
