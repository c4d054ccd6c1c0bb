"""One command at a time in a work directory, and a lock that ends with the process that held it."""

import os
import signal
import subprocess
import sys

import pytest

from diffusion_jax.config import ConfigError
from diffusion_jax.jobs import lock

HOLD = "import sys, time, pathlib\nfrom diffusion_jax.jobs import lock\nwith lock.held(pathlib.Path(sys.argv[1])):\n"
HOLD += "    print('held', flush=True)\n    time.sleep(600)\n"


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_second_command_is_told_who_holds_it(holder, tmp_path):
    host = os.uname().nodename
    said = rf"is in use by process {holder.pid} on {host} since 20.*; wait for that"
    with pytest.raises(ConfigError, match=said), lock.held(tmp_path):
        pytest.fail("two hold it")


def test_a_killed_process_leaves_no_lock_behind(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    for _ in range(2):
        with lock.held(tmp_path):
            assert f'"process": {os.getpid()}' in (tmp_path / lock.FILE).read_text()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / lock.FILE).mkdir()
    with pytest.raises(ConfigError, match="cannot be written"), lock.held(tmp_path):
        pass
