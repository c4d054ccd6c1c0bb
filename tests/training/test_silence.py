"""Noise is a matter of the process, so this runs one."""

import logging
import subprocess
import sys
from pathlib import Path

from diffusion_jax.training import silence

PROGRAM = """
import shutil, sys, absl.logging, jax, jax.numpy as jnp
from diffusion_jax.training import checkpoints, sharding

directory, tree = sys.argv[1], {str(i): jnp.arange(5000.0) for i in range(20)}
target = sharding.sharded_shapes(sharding.make_mesh(), tree)
with checkpoints.Checkpoints(directory, 2) as writer:
    writer.save(1, tree, None, {})
shutil.rmtree(f"{directory}/1/state/ocdbt.process_0")
with checkpoints.Checkpoints(directory, 2) as writer:
    try:
        writer.restore(target)
    except checkpoints.CheckpointError as error:
        print("refused")

class Noisy:
    def __del__(self):
        raise RuntimeError("a finalizer is heard")

absl.logging.error("a log is heard")
Noisy()
"""


def test_orbax_is_silent_and_others_are_not(tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr
    assert "a log is heard" in done.stderr and "RuntimeError: a finalizer is heard" in done.stderr
    assert "orbax" not in done.stderr and "loop" not in done.stderr and len(done.stderr.splitlines()) < 10, done.stderr


def test_a_bare_futures_complaint_is_known_by_its_traceback(tmp_path):
    """asyncio names no file for it; only where its exception was raised tells whose it is."""
    silence.silence_orbax()
    folder = tmp_path / "orbax"
    folder.mkdir()

    def complaint(path):
        path.write_text("def fail():\n    raise ValueError('write failed')\n")
        names = {}
        exec(compile(path.read_text(), str(path), "exec"), names)
        try:
            names["fail"]()
        except ValueError:
            return logging.makeLogRecord(
                {"name": "asyncio", "msg": "Future exception was never retrieved", "exc_info": sys.exc_info()}
            )

    heard = logging.getLogger("asyncio").filter
    assert not heard(complaint(folder / "serialization.py"))
    assert heard(complaint(tmp_path / "serialization.py"))


def test_a_native_futures_complaint_is_known_by_its_message():
    silence.silence_orbax()
    heard = logging.getLogger("asyncio").filter

    def complaint(error):
        return logging.makeLogRecord(
            {
                "name": "asyncio",
                "msg": "Future exception was never retrieved",
                "exc_info": (type(error), error, error.__traceback__),
            }
        )

    message = 'FAILED_PRECONDITION: Error reading "17/0" in OCDBT database at local file "/tmp/1/state/"'
    assert not heard(complaint(ValueError(message)))
    assert heard(complaint(ValueError("another library's")))
