"""Notices of the cloud, from a metadata server of the test's own."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import ClassVar

import pytest

from diffusion_jax.training import interruption
from diffusion_jax.training.maintenance import MaintenanceWatch
from tests.training.test_interruption import REPOSITORY, finish, last_step, saved_steps, wait_until


class Metadata(http.server.BaseHTTPRequestHandler):
    answers: ClassVar[dict[str, str]] = {}

    def do_GET(self):
        known = self.headers.get("Metadata-Flavor") == "Google" and self.path in self.answers
        self.send_response(200 if known else 403)
        self.end_headers()
        if known:
            self.wfile.write(self.answers[self.path].encode())

    def log_message(self, *_):
        pass


BASE = "/computeMetadata/v1/instance/"


@pytest.fixture
def server(monkeypatch):
    Metadata.answers = {BASE + "preempted": "FALSE", BASE + "maintenance-event": "NONE"}
    with http.server.ThreadingHTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"localhost:{server.server_port}")
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("path", "answer", "heard"),
    [
        ("preempted", "TRUE", True),
        ("maintenance-event", "TERMINATE_ON_HOST_MAINTENANCE", True),
        ("maintenance-event", "MIGRATE_ON_HOST_MAINTENANCE", False),
    ],
)
def test_a_notice_asks_the_run_to_save_and_be_started_again(server, path, answer, heard):
    with interruption.Interruption() as watched, MaintenanceWatch(seconds=0.02):
        time.sleep(0.2)
        assert not watched.requested(1)
        Metadata.answers[BASE + path] = answer
        deadline = time.monotonic() + (10 if heard else 0.3)
        while time.monotonic() < deadline and not watched.requested(2):
            time.sleep(0.02)
    assert watched.signal == (signal.SIGUSR1 if heard else None)


def test_without_a_server_nothing_is_heard(monkeypatch):
    monkeypatch.setenv("GCE_METADATA_HOST", "localhost:1")
    with interruption.Interruption() as watched, MaintenanceWatch(seconds=0.02):
        time.sleep(0.2)
    assert watched.signal is None


def test_the_command_saves_and_ends_with_the_code_for_restarting(tmp_path, server):
    line = [sys.executable, "-m", "diffusion_jax.main", "--config", "tests/configs/tiny.py", "--workdir", str(tmp_path)]
    process = subprocess.Popen(
        [*line, "--config.training.num_steps=100000", "--config.training.checkpoint_every=100000"],
        **{"cwd": REPOSITORY, "env": os.environ | {"XLA_FLAGS": ""}, "text": True},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE},
    )
    wait_until(lambda: last_step(tmp_path) >= 10, process)
    Metadata.answers[BASE + "preempted"] = "TRUE"
    noticed = time.monotonic()
    code, output = finish(process, timeout=60)
    assert time.monotonic() - noticed < 30  # what a spot TPU is given
    assert code == interruption.RESTART == 75 and "asks to be started again" in output, output
    [step] = saved_steps(tmp_path)
    assert 10 <= step < 100000 and json.loads((tmp_path / "timing.json").read_text())["steps"] == step


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)])
def test_exit_codes(number, code):
    assert interruption.exit_code(number) == code


def test_a_warning_outside_of_training_ends_at_once():
    program = (
        "import os, signal, time\nfrom diffusion_jax.training.interruption import restarting_on_warnings\n"
        "with restarting_on_warnings():\n    os.kill(os.getpid(), signal.SIGUSR1)\n    time.sleep(30)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY).returncode == 75
