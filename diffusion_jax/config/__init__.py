"""Experiment settings: their defaults, their checks, and the objects that they describe."""

from diffusion_jax.config.check import check, flatten
from diffusion_jax.config.command import load, override
from diffusion_jax.config.experiment import Experiment
from diffusion_jax.config.quick import run_name, shrink
from diffusion_jax.config.schema import default
from diffusion_jax.config.section import ConfigError

__all__ = ["ConfigError", "Experiment", "check", "default", "flatten", "load", "override", "run_name", "shrink"]
