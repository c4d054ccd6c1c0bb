"""Image diffusion models in JAX: training, sampling, measurement.

Importing this package imports no library: a program takes the parts that it needs, for example
``from diffusion_jax.diffusion import samplers``. What stands above all floors is written here: how the hub and the
metrics open what training and data know about. Nothing below `jobs` imports this file's names.
"""

from diffusion_jax import openers
from diffusion_jax.version import __version__

__all__ = ["__version__"]


def _run(folder):
    from diffusion_jax.jobs import export

    return export.open_run(folder)


def _tfds(dataset: str, split: str):
    from diffusion_jax.data.sources import tfds

    return tfds.encoded_images(dataset, split)


openers.register("run", _run)  # hub.load("runs/mine")
openers.register("tfds", _tfds)  # ./launch/local.sh metrics --reference tfds:NAME/SPLIT
