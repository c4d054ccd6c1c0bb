"""One image file to one uint8 square, the same way for every source that holds files."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from diffusion_jax.readers import ReadError, images


def read_image(file: Path | BinaryIO, name: str, *, image_size: int, channels: int) -> np.ndarray:
    """Decodes a file and makes it a square of the wanted size.

    In this order: EXIF orientation applied; 8 bits a channel, and transparency composited on white
    (`readers.images.decode`); grey or RGB as asked for (ITU-R 601 luma); central square of the shorter side; Pillow's
    LANCZOS (antialiased) to ``image_size``. The last two steps are EDM's ``center-crop`` transform (Karras et al. 2022,
    dataset_tool.py). An image that has the size already keeps its pixels. Of an animation the first frame is taken.

    Args:
        file: a path, or an open binary file.
        name: what to call the image in an error.
        image_size: side of the result in pixels.
        channels: 1 or 3.

    Returns:
        uint8 [image_size, image_size, channels].

    Raises:
        ValueError: the file is missing, truncated, damaged, no image, or larger than `readers.images.MOST_PIXELS`.
    """
    try:
        return _square(images.decode(file), image_size, channels)
    except ReadError as error:
        raise ValueError(f"cannot read image {name}: {error}") from None


def _square(image: Image.Image, image_size: int, channels: int) -> np.ndarray:
    image = image.convert("L" if channels == 1 else "RGB")
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    if width != height:
        # A real crop: the `box` of resize would let the filter see the pixels outside the square.
        image = image.crop((left, top, left + side, top + side))
    if side != image_size:
        image = image.resize((image_size, image_size), Image.Resampling.LANCZOS)
    return np.asarray(image).reshape(image_size, image_size, channels)
