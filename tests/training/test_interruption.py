"""Runs that are ended from outside, in processes of their own."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).parents[2]


def start(workdir, *options):
    command = [sys.executable, "-m", "tests.training.worker", str(workdir), *map(str, options)]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(process, timeout=120):
    """(exit code, what it wrote)"""
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output + errors


def last_step(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def saved_steps(workdir):
    directory = workdir / "checkpoints"
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit()) if directory.exists() else []


def wait_until(condition, process, timeout=120):
    deadline = time.monotonic() + timeout
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def assert_same_end(workdir, expected):
    with np.load(workdir / "params.npz") as a, np.load(expected / "params.npz") as b:
        assert a.files == b.files and len(a.files) == 6
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)

    def curve(directory):
        lines = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if not k.endswith("per_second")} for line in lines]

    assert curve(workdir) == curve(expected)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    code, output = finish(start(workdir))
    assert code == 0, output
    return workdir


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_ends_the_same(tmp_path, undisturbed, number, code):
    process = start(tmp_path, "--seconds", 0.1, "--checkpoint_every", 1000)
    wait_until(lambda: last_step(tmp_path) >= 4, process)
    process.send_signal(number)
    assert finish(process, timeout=30)[0] == code
    [step] = saved_steps(tmp_path)
    assert 4 <= step < 40
    code, output = finish(start(tmp_path, "--checkpoint_every", 1000))
    assert code == 0 and f"resuming from the checkpoint of step {step}" in output
    assert_same_end(tmp_path, undisturbed)


def test_a_full_disk_stops_cleanly_and_harms_nothing(tmp_path, undisturbed):
    assert finish(start(tmp_path, "--num_steps", 6))[0] == 0
    code, output = finish(start(tmp_path, "--file_limit", 4000))
    assert code == 2
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].endswith("could not be written: File too large"), output
    assert "Traceback" not in output
    code, output = finish(start(tmp_path))
    assert code == 0 and "resuming from the checkpoint of step 6" in output
    assert_same_end(tmp_path, undisturbed)


def test_a_disk_too_full_for_reports_is_named(tmp_path):
    code, output = finish(start(tmp_path, "--file_limit", 2000, "--num_steps", 60, "--checkpoint_every", 100))
    assert code == 2 and re.search(r"error: .*: cannot be written: File too large\n", output), output
    assert "Traceback" not in output


def test_two_processes_learn_what_one_learns_and_stop_together(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

    def start_both(*options):
        with socket.socket() as probe:
            probe.bind(("localhost", 0))
            address = f"localhost:{probe.getsockname()[1]}"
        common = ("--coordinator", address, "--processes", 2, *options)
        return [start(tmp_path, *common, "--process", index) for index in range(2)]

    first, second = start_both("--seconds", 0.1, "--checkpoint_every", 1000)
    wait_until(lambda: last_step(tmp_path) >= 4, first)
    first.terminate()  # one hears it, both stop
    codes = [finish(process) for process in (first, second)]
    assert [code for code, _ in codes] == [143, 143], codes
    [step] = saved_steps(tmp_path)
    codes = [finish(process) for process in start_both("--checkpoint_every", 1000)]
    assert [code for code, _ in codes] == [0, 0], codes
    assert f"resuming from the checkpoint of step {step}" in codes[0][1] and codes[1][1].count("resuming") == 0
    with np.load(tmp_path / "params.npz") as a, np.load(undisturbed / "params.npz") as b:
        for name in a.files:
            np.testing.assert_allclose(a[name], b[name], atol=1e-5)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 41, 2))
