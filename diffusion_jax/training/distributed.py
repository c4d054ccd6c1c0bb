"""Several processes as one run, one a host or one a GPU: how they find each other, and what they do without one."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffusion_jax.training.interruption import RESTART

AUTO = "auto"
# JAX's own name of the first; the other two go with it.
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")

# A process that has not been heard of for so long is lost. Heartbeats come from a thread of their own, so one that
# compiles or reads is heard.
HEARTBEAT_SECONDS = 30
# Seconds that process 0 stays after a failure.
_GRACE = 3.0

# What the libraries that move data between processes say when one is gone: Gloo on CPUs, NCCL on GPUs, and the service
# in process 0 by which they all know each other.
_LOST = re.compile(
    r"gloo|nccl|coordination service|heartbeat|barrier|unavailable|connection (reset|closed|refused)", re.I
)


def initialize(coordinator: str | None, num_processes: int | None = None, process_id: int | None = None) -> None:
    """Joins the other processes of the run; without a coordinator, by argument or environment, there are none.

    Has to come before anything runs on a device. Every process gets the same arguments but for its number.

    Args:
      coordinator: HOST:PORT of process 0, with a free port; "auto" asks the cluster (TPU pod, SLURM, Open MPI).
        None takes the environment's JAX_COORDINATOR_ADDRESS.
      num_processes, process_id: how many there are, and which this is, from 0; None takes the environment's
        JAX_NUM_PROCESSES and JAX_PROCESS_ID. Not needed with "auto".

    Raises:
      ValueError: an argument that is missing or cannot be, no cluster, or processes that do not answer.
    """
    given = [os.environ.get(name) for name in VARIABLES]
    address = coordinator or given[0]
    if not address:
        if num_processes is not None or process_id is not None:
            raise ValueError("--num_processes and --process_id need --coordinator HOST:PORT, the address of process 0")
        return
    if address == AUTO:
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"--coordinator auto: no cluster was found or it does not answer ({_first_line(error)}); on plain "
                "hosts give --coordinator HOST:PORT --num_processes N --process_id I"
            ) from error
        return
    if not re.fullmatch(r".+:\d+", address):
        raise ValueError(f"--coordinator is {address!r}; it must be HOST:PORT of process 0, or auto")
    count = _number("--num_processes", num_processes, given[1])
    number = _number("--process_id", process_id, given[2])
    if not 0 <= number < count:
        raise ValueError(f"--process_id is {number} of {count} processes; it must be from 0 to {count - 1}")
    try:
        jax.distributed.initialize(address, count, number, heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    except RuntimeError as error:
        raise ValueError(
            f"--coordinator {address}: not all processes could be reached: {_first_line(error)}"
        ) from error


def _number(flag: str, value: int | None, variable: str | None) -> int:
    if value is not None:
        return value
    if variable is None or not variable.isdecimal():
        raise ValueError(f"{flag} is {variable!r}; with --coordinator it must be a number")
    return int(variable)


def wait_for_all(name: str) -> None:
    """Returns when all processes are here. `name` is the place, for errors."""
    if jax.process_count() > 1:
        with leaving_if_one_is_lost():
            multihost_utils.sync_global_devices(name)


def by_first(function: Callable[[], Any]) -> Any:
    """What a function returns in process 0, which alone runs it, in every process; or the ValueError that it raises.

    All processes call this, and so go on alike. The value goes as JSON: floats are exact, tuples become lists.
    """
    answer, failed = {}, None
    if jax.process_index() == 0:
        try:
            answer = {"value": function()}
        except ValueError as error:
            answer, failed = {"error": str(error)}, error
    answer = json.loads(_from_first(json.dumps(answer, default=float)))
    if "error" in answer:
        raise failed or ValueError(answer["error"])
    return answer["value"]


def _from_first(text: str) -> str:
    """The text of process 0."""
    if jax.process_count() == 1:
        return text
    content = text.encode()
    # filled up with spaces, so that few lengths compile
    length = int(multihost_utils.broadcast_one_to_all(np.int32(-(-len(content) // 1024) * 1024)))
    filled = np.frombuffer(content.ljust(length)[:length], np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(filled)).tobytes().decode()


@contextlib.contextmanager
def leaving_if_one_is_lost() -> Iterator[None]:
    """Ends this process with RESTART, and one line, if an error in here says that another process is gone.

    At once, because the usual way out waits for the others: for checkpoints, which are whole or not at all anyway, and
    for the end of the service. Where no error comes, as from a collective of TPUs, JAX itself aborts the process when
    the lost one has not been heard of for HEARTBEAT_SECONDS.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # Gloo's are ValueErrors
        if jax.process_count() == 1 or not _LOST.search(str(error)):
            raise
        print(
            f"process {jax.process_index()} of {jax.process_count()} stops, because another one was lost "
            f"({_first_line(error)}); started again, all of them resume from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        sys.stdout.flush()
        os._exit(RESTART)


def leave(code: int) -> None:
    """Ends a process that has failed alone: the usual way out would wait for the others, who wait for it."""
    if jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        if jax.process_index() == 0:
            time.sleep(_GRACE)  # with it ends the service; others that have failed alike may leave first
        os._exit(code)


def _first_line(error: BaseException) -> str:
    line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return line if len(line) <= 160 else f"{line[:160]}..."
