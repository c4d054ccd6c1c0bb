"""How much of a batch fits on a device: found by compiling, before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from diffusion_jax.training import sharding
from diffusion_jax.training.logging import say

# The rest is for what the program does not know of: other programs, fragmentation.
USABLE = 0.92
_GIB = 2**30


def needed(compiled: Any) -> int:
    """Bytes that one device holds while a compiled program runs: arguments, results that are not put in their place,
    and what is between."""
    analysis = compiled.memory_analysis()
    held = analysis.argument_size_in_bytes + analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return held + analysis.temp_size_in_bytes


def available(mesh: Mesh) -> int:
    """Bytes that a program may use on every device of the mesh. Raises ValueError where the devices do not tell."""
    limits = [(device.memory_stats() or {}).get("bytes_limit", 0) for device in mesh.local_devices]
    smallest = min(limits)
    if jax.process_count() > 1:  # all have to decide alike
        smallest = int(np.min(multihost_utils.process_allgather(np.int64(smallest))))
    if not smallest:
        kind = mesh.devices.flat[0].device_kind
        raise ValueError(
            "training.accumulation_steps is 0, which fits the batch to the memory of the device, but a device of kind "
            f"{kind!r} does not tell how much it has; set it to 1 or more"
        )
    return int(smallest * USABLE)


def fit_batch(compile_step: Callable[[int], Any], mesh: Mesh, batch_size: int, limit: int) -> tuple[int, Any]:
    """(accumulation steps, compiled step): as few parts of the batch as fit into `limit` bytes a device.

    The batch itself stays as it is, and with it what is learnt.

    Args:
      compile_step: from the number of accumulation steps.
      mesh: over which the batch is split.
      batch_size: of all devices together.
      limit: see `available`.

    Raises:
      ValueError: one example a device is too much.
    """
    rows = batch_size // sharding.num_shards(mesh)
    least = 0
    for parts in (parts for parts in range(1, rows + 1) if rows % parts == 0):
        try:
            compiled = compile_step(parts)
            least = needed(compiled)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            continue
        if least <= limit:
            say(
                f"the batch in {parts} parts of {rows // parts} a device takes {least / _GIB:.2f} of "
                f"{limit / _GIB:.2f} GiB"
            )
            return parts, compiled
    raise ValueError(
        f"training.accumulation_steps is 0, but one example a device takes {least / _GIB:.2f} of {limit / _GIB:.2f} "
        "GiB; split the parameters with mesh.fsdp, or recompute blocks with model.remat"
    )
