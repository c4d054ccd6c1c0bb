"""Several real processes on this machine: one of them is lost, and the whole command is run by two."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from diffusion_jax.training import distributed
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


def command(workdir, *options, devices, **environment):
    line = [sys.executable, "-m", "diffusion_jax.main", "--config", "tests/configs/tiny.py", "--workdir", str(workdir)]
    environment = {**os.environ, **environment, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    return subprocess.Popen(
        [*line, *options], cwd=REPOSITORY, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_two_processes_make_the_whole_run(tmp_path):
    small = {"training.num_steps": 10, "evaluation.classifier_steps": 2, "evaluation.num_images": 20}
    small |= {"evaluation.num_likelihood_images": 0, "sampling.num_steps": 2}
    options = ["--config.mesh.fsdp=2", *(f"--config.{field}={value}" for field, value in small.items())]
    address = free_address()
    by_flags = ("--coordinator", address, "--num_processes", "2", "--process_id", "0")
    by_environment = dict(zip(distributed.VARIABLES, (address, "2", "1"), strict=True))
    both = [
        command(tmp_path / "two", *options, *by_flags, devices=2),
        command(tmp_path / "two", *options, devices=2, **by_environment),
    ]
    ends = [finish(process, timeout=300) for process in both]
    assert [code for code, _ in ends] == [0, 0], ends
    assert "parameters on 4 x" in ends[0][1] and "parameters on" not in ends[1][1]
    for name in ("samples.png", "evaluation.json", "report.html"):
        assert (tmp_path / "two" / name).stat().st_size
    [line] = map(json.loads, (tmp_path / "two" / "metrics.jsonl").read_text().splitlines())
    assert line["step"] == 10 and line["bad_steps"] == 0


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
