"""The conditions that there are: `CONDITION` of every file beside this one, by its name."""

from __future__ import annotations

import importlib
import pkgutil

from diffusion_jax import conditions
from diffusion_jax.conditions.condition import Condition

CONDITIONS: dict[str, type[Condition]] = {
    module.CONDITION.name: module.CONDITION
    for found in pkgutil.iter_modules(conditions.__path__)
    if hasattr(module := importlib.import_module(f"{conditions.__name__}.{found.name}"), "CONDITION")
}
