"""The methods that there are: every folder beside this file, by its name."""

from __future__ import annotations

import importlib
import pkgutil

from diffusion_jax import methods
from diffusion_jax.methods.method import Method

METHODS: dict[str, Method] = {
    found.name: importlib.import_module(f"{methods.__name__}.{found.name}").METHOD
    for found in sorted(pkgutil.iter_modules(methods.__path__), key=lambda found: found.name)
    if found.ispkg
}
