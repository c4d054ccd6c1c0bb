"""What has to be in the environment before JAX starts. Imports nothing, so that it can come first."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

# Convolutions on the CPU through Eigen instead of YNNPACK: a training step of a U-Net takes about 3/4 of the time. XLA
# aborts at the sight of a flag value that it does not know, so it is set for versions that were tried.
_CPU_CONVOLUTION_FLAG = "--xla_cpu_experimental_ynn_fusion_type=-individual_convolution"
_TRIED_JAX_VERSIONS = ("0.10.", "0.11.", "0.12.")


def prepare() -> None:
    """Sets defaults for XLA and for JAX's persistent compilation cache; what the user has set stays as it is."""
    flags = os.environ.get("XLA_FLAGS", "")
    if (
        "ynn_fusion_type" not in flags
        and importlib.metadata.version("jaxlib").startswith(_TRIED_JAX_VERSIONS)
        and not _has_accelerator()
    ):
        os.environ["XLA_FLAGS"] = f"{flags} {_CPU_CONVOLUTION_FLAG}".strip()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(caches / "diffusion_jax" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")


def _has_accelerator() -> bool:
    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] == "cpu":
        return False
    installed = {distribution.name.lower() for distribution in importlib.metadata.distributions() if distribution.name}
    return "libtpu" in installed or any(name.startswith("jax-cuda") for name in installed)
