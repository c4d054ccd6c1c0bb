"""TPUs that nobody has to own: libtpu holds their compiler, which only needs to be told what the slice looks like.

prepare_environment()                 # before JAX is imported
devices = tpu_devices("v5e", 64)      # for meshes and shardings; what is compiled for them cannot be run
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any

# Shapes of slices, of the generations whose chips lie in a plane and in a cube.
_PLANE = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_CUBE = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8))
SLICES = {"v5e": _PLANE, "v6e": _PLANE, "v5p": _CUBE}
# GiB of memory on a chip, by Google's pages; the compiler keeps a little for itself.
CHIP_MEMORY = {"v5e": 16, "v6e": 32, "v5p": 95}
# With less effort programs are not as fast, but are compiled several times as quickly.
QUICKLY = {"exec_time_optimization_effort": -1.0}


def prepare_environment() -> None:
    """Keeps libtpu from looking for a TPU, from asking the metadata server, and from being alone on the machine."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")


def tpu_devices(generation: str, count: int) -> list[Any]:
    """So many chips of a generation, one device each.

    Raises:
      ValueError: no libtpu, an unknown generation, or a count of which there is no slice.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError('topology needs the compiler for TPUs, which is not installed: pip install "jax[tpu]"')
    if generation not in SLICES:
        raise ValueError(f"topology is {generation!r}; it must be one of {', '.join(SLICES)}")
    slices = {math.prod(shape): shape for shape in SLICES[generation]}
    if count not in slices:
        raise ValueError(f"devices is {count}; slices of {generation} have {', '.join(map(str, slices))}")
    from jax.experimental import topologies

    # By default a host has four chips, of which a single one is no whole multiple.
    host = {"chips_per_host_bounds": (1, 1, 1)} if count == 1 else {}
    name = f"{generation}:{'x'.join(map(str, slices[count]))}"
    devices = topologies.get_topology_desc(platform="tpu", topology_name=name, **host).devices
    assert len(devices) == count
    return list(devices)
