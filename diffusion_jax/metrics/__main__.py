"""The command `./launch/local.sh metrics`.

What TensorFlow Datasets holds is opened by `diffusion_jax.data`, which no other file of the metrics reaches either: by
the opener that the package registers.
"""

import sys

from diffusion_jax import openers, platform

platform.prepare()  # before anything imports JAX

from diffusion_jax.metrics import command  # noqa: E402
from diffusion_jax.metrics.image_sets import EncodedImages, ImageSet, ImageSetError  # noqa: E402


def tfds_images(name: str) -> ImageSet:
    """Images of "NAME/SPLIT" in TensorFlow Datasets, as they are stored there. Raises ImageSetError."""
    dataset, slash, split = name.rpartition("/")
    if not slash:
        raise ImageSetError(f"tfds:{name}: expected tfds:NAME/SPLIT, such as tfds:cifar10/train")
    try:
        files = openers.named("tfds")(dataset, split)
    except ImportError as error:
        raise ImageSetError(f"tfds:{name}: needs the package tensorflow-datasets ({error})") from None
    return EncodedImages(files, f"tfds:{name}")


if __name__ == "__main__":
    sys.exit(command.main(sys.argv[1:], {"tfds": tfds_images}))
