"""A finished or running experiment as a network and its parameters, for the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flax import linen as nn

from diffusion_jax import config
from diffusion_jax.config import saved
from diffusion_jax.jobs.session import Session


def open_run(workdir: Path) -> tuple[nn.Module, Any]:
    """(network, averaged parameters) of the newest checkpoint of the run in a work directory.

    The data is asked for its number of classes if the run is class-conditional; the mesh is the one of this machine.

    Raises:
      ValueError: in one line: config.json cannot be read, or there is no checkpoint, or the data is not there.
    """
    settings = saved.read(workdir)
    settings.mesh = config.default().mesh
    session = Session(settings, workdir)
    _, params = session.parameters
    return session.model.network, params
