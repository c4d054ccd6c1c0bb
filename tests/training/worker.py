"""A run of the loop in a process of its own, for tests that end processes: python worker.py WORKDIR [options].

Writes the final parameters to WORKDIR/params.npz. Exits like the command: 2 with one line for an error of the user,
128 + the signal when one ended the run.
"""

import argparse
import os
import resource
import signal
import sys
import threading
import time

import jax
import numpy as np

from diffusion_jax.training import distributed, interruption, sharding
from tests.training import toy


class SlowCounter(toy.Counter):
    """Batches that take a while, so that there is time to interfere."""

    def __init__(self, seconds: float, process_index: int = 0, process_count: int = 1):
        super().__init__()
        self.seconds, self.process_index, self.process_count = seconds, process_index, process_count

    def __next__(self) -> dict[str, np.ndarray]:
        time.sleep(self.seconds)
        rows = self.batch_size // self.process_count
        start = self.process_index * rows
        return {name: value[start : start + rows] for name, value in super().__next__().items()}


def die_in_save(workdir: str, seconds: float) -> None:
    """Kills this process in the middle of a save: while Orbax's temporary folder is there."""
    saved = 0
    while True:
        names = os.listdir(f"{workdir}/checkpoints") if os.path.isdir(f"{workdir}/checkpoints") else []
        if any("tmp" in name for name in names):
            saved += 1
            if saved > 1:  # one that is whole came before
                time.sleep(seconds)
                os.kill(os.getpid(), signal.SIGKILL)
            while any("tmp" in name for name in os.listdir(f"{workdir}/checkpoints")):
                time.sleep(0.0005)
        time.sleep(0.0005)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--num_steps", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--checkpoint_every", type=int, default=3)
    parser.add_argument("--file_limit", type=int, help="bytes that a file may grow to")
    parser.add_argument("--coordinator")
    parser.add_argument("--process", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--die_in_save", type=float, help="seconds into a save after which the process kills itself")
    options = parser.parse_args()
    if options.die_in_save is not None:
        threading.Thread(target=die_in_save, args=(options.workdir, options.die_in_save), daemon=True).start()
    if options.file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.file_limit, options.file_limit))
    if options.coordinator:
        distributed.initialize(options.coordinator, options.processes, options.process)
    try:
        result = toy.train(
            options.workdir,
            batches=SlowCounter(options.seconds, jax.process_index(), jax.process_count()),
            mesh=sharding.make_mesh(fsdp=2),
            num_steps=options.num_steps,
            log_every=2,
            checkpoint_every=options.checkpoint_every,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if result.interrupted is not None:
        return interruption.exit_code(result.interrupted)
    gather = jax.jit(lambda tree: tree, out_shardings=sharding.replicated(sharding.make_mesh(fsdp=2)))
    params = jax.device_get(gather({"params": result.state.params, "ema": result.state.ema_params}))
    if jax.process_index() == 0:
        flat = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
        np.savez(f"{options.workdir}/params.npz", **flat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
