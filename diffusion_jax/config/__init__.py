"""Experiment settings: their defaults, their checks, and the objects that they describe."""

from diffusion_jax.config.check import ConfigError, check, flatten, refuse_override
from diffusion_jax.config.quick import run_name, shrink
from diffusion_jax.config.schema import default

__all__ = ["ConfigError", "check", "default", "flatten", "refuse_override", "run_name", "shrink"]
