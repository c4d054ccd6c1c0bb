"""Sources by name."""

from __future__ import annotations

import difflib
from typing import Literal

from diffusion_jax.data.source import Source
from diffusion_jax.data.sources import digits, haar_digits, image_folder, latents, tfds

Split = Literal["train", "test"]
SOURCES = ("digits", "image_folder", "latents", "haar_digits", "tfds:<dataset name>")
# Of these the images are latents.
LATENT_SOURCES = ("latents", "haar_digits")
_IN_A_PATH = ("image_folder", "latents")


def load_source(
    name: str,
    split: Split,
    *,
    image_size: int,
    channels: int = 3,
    path: str | None = None,
    data_dir: str | None = None,
) -> Source:
    """Opens one split of a source; nothing is downloaded, and files are decoded only when asked for.

    Args:
        name: "digits", "image_folder", "latents" (of images that were encoded), or "tfds:" and the name of a TFDS
            dataset ("tfds:cifar10", "tfds:name/config:version"); "haar_digits" are latents without an autoencoder.
        split: "train", or "test" for the images that training never sees.
        image_size: side of the square images in pixels, or of the latents.
        channels: 3 (RGB) or 1 (grey); of latents any number.
        path: the folder; image_folder and latents only, which need it.
        data_dir: where TFDS keeps prepared datasets; tfds only, None for TFDS's own default.

    Returns:
        The source.

    Raises:
        ValueError: with one line that says which argument is wrong, what it got and what it could be.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")
    if channels not in (1, 3) and name not in LATENT_SOURCES:
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels!r}")
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"image_size must be a positive number of pixels, got {image_size!r}")
    kind, _, dataset = name.partition(":")
    if path is not None and name not in _IN_A_PATH:
        raise ValueError(f"path={path!r} is for the sources 'image_folder' and 'latents' only, not for {name!r}")
    if data_dir is not None and kind != "tfds":
        raise ValueError(f"data_dir={data_dir!r} is for the sources 'tfds:...' only, not for {name!r}")

    if name == "digits":
        return digits.load(split, image_size=image_size, channels=channels)
    if name == "haar_digits":
        return haar_digits.load(split, image_size=image_size, channels=channels)
    if name == "image_folder":
        if path is None:
            raise ValueError("the source 'image_folder' needs path: the folder with the images")
        return image_folder.load(path, split, image_size=image_size, channels=channels)
    if name == "latents":
        if path is None:
            raise ValueError("the source 'latents' needs path: what ./launch/local.sh encode wrote, or an .npz")
        return latents.load(path, split, image_size=image_size, channels=channels)
    if kind == "tfds" and dataset:
        return tfds.load(dataset, split, image_size=image_size, channels=channels, data_dir=data_dir)

    close = difflib.get_close_matches(kind.lower(), ["digits", "image_folder", "latents", "tfds"], n=1)
    hint = ""
    if close:
        nearest = f"tfds:{dataset or '<dataset name>'}" if close[0] == "tfds" else close[0]
        hint = f"; did you mean {nearest!r}?"
    raise ValueError(f"unknown data source {name!r}{hint} (sources: {', '.join(SOURCES)})")
