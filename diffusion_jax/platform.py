"""What has to be in the environment before JAX starts. Imports nothing, so that it can come first."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
from pathlib import Path

# For XLA on the CPU. XLA aborts at the sight of a flag value that it does not know, so they are set for versions that
# were tried.
# - Convolutions through Eigen instead of YNNPACK: a training step of a U-Net takes about 3/4 of the time.
# - Barriers stay until kernels are formed: `models.once` and rematerialisation need them, and the pass of this name
#   drops them before.
_CPU_FLAGS = {
    "ynn_fusion_type": "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution",
    "disable_hlo_passes": "--xla_disable_hlo_passes=cse_barrier_expander",
}
_TRIED_JAX_VERSIONS = ("0.10.", "0.11.", "0.12.")
# glibc's parameters of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def prepare() -> None:
    """Sets defaults for XLA, JAX's persistent compilation cache and malloc; what the user has set stays as it is."""
    if not _has_accelerator():
        if importlib.metadata.version("jaxlib").startswith(_TRIED_JAX_VERSIONS):
            flags = os.environ.get("XLA_FLAGS", "")
            ours = [flag for name, flag in _CPU_FLAGS.items() if name not in flags]
            os.environ["XLA_FLAGS"] = " ".join([flags, *ours]).strip()
        _keep_freed_memory()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (cache := _cache_folder()) is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")


def _cache_folder() -> Path | None:
    """Where compiled programs are kept; None for a user who has no home or cannot write there."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffusion_jax" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
    except (RuntimeError, OSError):  # no HOME, and a user that the system does not know; a folder that is not theirs
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _keep_freed_memory() -> None:
    """Lets the process keep large blocks of memory that it has freed, where malloc is glibc's.

    XLA allocates its buffers anew in every step. malloc gives such blocks back to the system at once, which then clears
    each page again for the next step: up to a fifth of a step's time.
    """
    if os.environ.get("GLIBC_TUNABLES") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        # One arena, for the others cannot hold blocks above 64 MiB; no separate mappings; no trimming.
        for parameter, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1)):
            mallopt(parameter, value)


def _has_accelerator() -> bool:
    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return False
    installed = {distribution.name.lower() for distribution in importlib.metadata.distributions() if distribution.name}
    return "libtpu" in installed or any(name.startswith("jax-cuda") for name in installed)
