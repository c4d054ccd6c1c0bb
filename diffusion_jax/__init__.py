"""Image diffusion models in JAX: training, sampling, measurement.

Importing this package imports nothing else: a program takes the parts that it needs, for example
``from diffusion_jax.diffusion import samplers``.
"""

__version__ = "0.1.0"
