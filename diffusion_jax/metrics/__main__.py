"""The command `./launch/local.sh metrics`.

This module alone of the package may reach over to `diffusion_jax.data`, for the names of TensorFlow Datasets, and only
when one is asked for; pyproject.toml has the exemption.
"""

import sys

from diffusion_jax import platform

platform.prepare()  # before anything imports JAX

from diffusion_jax.metrics import command  # noqa: E402
from diffusion_jax.metrics.image_sets import EncodedImages, ImageSet, ImageSetError  # noqa: E402


def tfds_images(name: str) -> ImageSet:
    """Images of "NAME/SPLIT" in TensorFlow Datasets, as they are stored there. Raises ImageSetError."""
    try:
        from diffusion_jax.data.sources import tfds
    except ImportError as error:
        raise ImageSetError(f"tfds:{name}: needs the package tensorflow-datasets ({error})") from None
    dataset, slash, split = name.rpartition("/")
    if not slash:
        raise ImageSetError(f"tfds:{name}: expected tfds:NAME/SPLIT, such as tfds:cifar10/train")
    return EncodedImages(tfds.encoded_images(dataset, split), f"tfds:{name}")


if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:], {"tfds": tfds_images}))
