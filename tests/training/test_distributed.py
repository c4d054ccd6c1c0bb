"""Several real processes on this machine: one of them is lost, and the whole command is run by two."""

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from diffusion_jax import config
from diffusion_jax.jobs import run, table
from diffusion_jax.training import distributed, sharding
from tests.configs import scored
from tests.training.test_interruption import REPOSITORY, finish, last_step, saved_steps, start, wait_until


def free_address():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return f"localhost:{probe.getsockname()[1]}"


def start_all(workdir, count, *options):
    common = ("--coordinator", free_address(), "--processes", count, *options)
    return [start(workdir, *common, "--process", index) for index in range(count)]


@pytest.mark.parametrize(
    ("count", "victim"),
    [(2, 1), pytest.param(2, 0, marks=pytest.mark.slow), pytest.param(4, 2, marks=pytest.mark.slow)],
)
def test_where_one_is_lost_the_others_stop_and_all_resume(tmp_path, monkeypatch, count, victim):
    monkeypatch.setenv("XLA_FLAGS", f"--xla_force_host_platform_device_count={8 // count}")
    processes = start_all(tmp_path, count, "--seconds", 0.1, "--num_steps", 24)
    wait_until(lambda: saved_steps(tmp_path) and last_step(tmp_path) >= 6, processes[0])
    processes[victim].kill()
    killed = time.monotonic()
    ends = [finish(process, timeout=90) for process in processes]
    assert time.monotonic() - killed < 2 * distributed.HEARTBEAT_SECONDS
    for index, (code, output) in enumerate(ends):
        if index == victim:
            assert code == -signal.SIGKILL
        else:
            # JAX may be faster than the error: then it says why, and aborts.
            assert (code, "because another one was lost" in output) == (distributed.RESTART, True) or (
                code == -signal.SIGABRT and "another task died" in output
            ), output
    codes = [finish(process) for process in start_all(tmp_path, count, "--num_steps", 24)]
    assert [code for code, _ in codes] == [0] * count, codes
    assert re.search(r"resuming from the checkpoint of step \d+", codes[0][1])
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 25, 2))


def command(workdir, *options, **environment):
    line = [sys.executable, "-m", "diffusion_jax.main", "--config", "tests/configs/scored.py", "--config.mesh.fsdp=2"]
    line += ["--workdir", str(workdir)]
    environment = {**os.environ, **environment, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"  # nearly all of the time is compilation
    return subprocess.Popen(
        [*line, *options], cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def assert_equal_numbers(found, expected):
    """What two runs wrote, down to the last entry; numbers to 1e-6."""
    if isinstance(expected, dict):
        # Times, and the weights of the classifier: their last bits depend on the threads of the process.
        own = {"seconds", "steps_per_second", "images_per_second", "weights_sha256"}
        assert found.keys() == expected.keys()
        for name in expected.keys() - own:
            assert_equal_numbers(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_equal_numbers(one, other)
    else:
        assert found == (pytest.approx(expected, rel=1e-6, abs=1e-9) if isinstance(expected, float) else expected)


def test_two_processes_make_the_whole_run_that_one_makes(tmp_path, monkeypatch):
    """Curve, scores in training, best parameters, evaluation, sweep and pictures; one device for each process."""
    address = free_address()
    by_flags = ("--coordinator", address, "--num_processes", "2", "--process_id", "0")
    by_environment = dict(zip(distributed.VARIABLES, (address, "2", "1"), strict=True))
    running = [command(tmp_path / "two", *by_flags), command(tmp_path / "two", **by_environment)]

    make_mesh = functools.partial(sharding.make_mesh, devices=jax.devices()[:2])
    monkeypatch.setattr(sharding, "make_mesh", make_mesh)
    alone = scored.get_config()
    alone.mesh.fsdp = 2
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        assert run.run(alone, tmp_path / "one", table.WHOLE_RUN, command="") == 0
    finally:
        jax.config.update("jax_disable_most_optimizations", False)

    ends = [finish(process, timeout=300) for process in running]
    assert [code for code, _ in ends] == [0, 0], ends
    assert "parameters on 2 x" in ends[0][1] and "parameters on" not in ends[1][1]
    for name in ("samples.png", "denoising.png", "forward_noising.png"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert (tmp_path / "two" / "report.html").stat().st_size
    assert [path.name for path in (tmp_path / "two" / "best").iterdir()] == [
        path.name for path in (tmp_path / "one" / "best").iterdir()
    ]
    for name in ("metrics.jsonl", "scoring.json", "evaluation.json"):
        texts = [(tmp_path / folder / name).read_text() for folder in ("two", "one")]
        parts = [text.splitlines() if name.endswith("l") else [text] for text in texts]
        found, expected = ([json.loads(part) for part in of] for of in parts)
        assert_equal_numbers(found, expected)
    scores = expected[0]["sweep"]["results"][0]
    assert {"kernel_distance_classifier_digits", "recall_classifier_digits"} <= scores.keys()


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (("host", 2, 0), {}, "--coordinator is 'host'; it must be HOST:PORT"),
        (("host:1", None, 0), {}, "--num_processes is None; with --coordinator it must be a number"),
        (("host:1", 2, None), {"JAX_PROCESS_ID": "x"}, "--process_id is 'x'"),
        (("host:1", 2, 2), {}, "--process_id is 2 of 2 processes; it must be from 0 to 1"),
        ((None, 2, 0), {}, "need --coordinator HOST:PORT"),
        (("auto", None, None), {}, "--coordinator auto: no cluster was found"),
    ],
)
def test_what_does_not_go_together_is_named(monkeypatch, arguments, environment, says):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=says) as error:
        distributed.initialize(*arguments)
    assert "\n" not in str(error.value)


def test_without_a_coordinator_nothing_happens(monkeypatch):
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setattr(distributed.jax.distributed, "initialize", None)
    distributed.initialize(None)


def test_the_first_process_answers_for_all():
    assert distributed.by_first(lambda: {"a": [0.1 + 0.2, None], "b": np.float32(0.1)}) == {
        "a": [0.1 + 0.2, None],
        "b": float(np.float32(0.1)),
    }

    def fail():
        raise config.ConfigError("no images")

    with pytest.raises(config.ConfigError, match="no images"):
        distributed.by_first(fail)
