"""One decoder of image files for the whole project, by Pillow, of formats that run nothing and fit into memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffusion_jax.readers.errors import ReadError, reason

# What is opened, by content. Pillow knows more: PostScript, for one, it hands to a program that runs what is in it.
_ALLOWED = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
# The endings of their names.
EXTENSIONS = (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Endings of pictures that cannot be read, which a folder says that it passes over.
UNREADABLE = (".heic", ".heif", ".svg", ".eps", ".psd", ".raw", ".cr2", ".nef", ".dng", ".jxl", ".ico", ".pdf")
# Twice a large camera's. Decoded and converted they take a gigabyte, whatever the size of the file.
MOST_PIXELS = 100_000_000
# How the content of files begins that are taken for images, and what they are.
_OTHERS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "a PDF"),
    (b"<svg", "SVG; draw it as a PNG first"),
    (b"<?xml", "XML or SVG; draw it as a PNG first"),
    (b"<!DO", "a web page"),
    (b"<html", "a web page"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8BPS", "of Photoshop; save it as a PNG first"),
)


def decode(file: Path | BinaryIO, *, upright: bool = True, background: str | None = "white") -> Image.Image:
    """The picture in a file, 8 bits a channel, loaded; of an animation the first frame.

    16-bit grey is reduced to its high byte; of floats, 0 to 1 become 0 to 255, and values up to 255 are levels.

    Args:
      file: a path, or an open binary file.
      upright: turned as its EXIF orientation says.
      background: the colour on which transparency is composited; None leaves that to the caller.

    Raises:
      ReadError: why it cannot be read, in a line without the file's name: missing, damaged, no picture, of a format
        that is not read, or of more than MOST_PIXELS pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata; what matters is an error
            with Image.open(file, formats=_formats()) as image:
                width, height = image.size
                if width * height > MOST_PIXELS:
                    raise ReadError(f"has {width} x {height} pixels; {MOST_PIXELS // 10**6} million are the most")
                image.load()
                return _eight_bits(ImageOps.exif_transpose(image) if upright else image.copy(), background)
    except ReadError:
        raise
    except UnidentifiedImageError:
        raise ReadError(_what_it_is(file)) from None
    except Image.DecompressionBombError:
        raise ReadError(f"has far more than {MOST_PIXELS // 10**6} million pixels, which are the most") from None
    except Exception as error:  # a damaged file makes decoders raise anything: SyntaxError, struct.error, ...
        raise ReadError(reason(error)) from None


def _formats() -> list[str]:
    """Those of the allowed formats that this Pillow was built with."""
    Image.init()
    return [name for name in _ALLOWED if name in Image.OPEN]


def _eight_bits(image: Image.Image, background: str | None) -> Image.Image:
    if image.mode == "F":
        return Image.fromarray(_levels(np.asarray(image)))
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow converts more than 8 bits by clipping, which turns nearly everything white.
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ReadError(f"has values from {values.min()} to {values.max()}; grey has 16 bits at most")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if background is not None and image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image


def _levels(values: np.ndarray) -> np.ndarray:
    """Floats as uint8; Pillow would cut them off, which turns 0 to 1 black."""
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255:
        raise ReadError(f"has floats from {values.min():g} to {values.max():g}; they must be 0 to 1, or 0 to 255")
    return np.round(values * 255 if values.max() <= 1 else values).astype(np.uint8)


def _what_it_is(file: Path | BinaryIO) -> str:
    """Why Pillow does not know a file, from how it begins."""
    if isinstance(file, (str, Path)):
        with open(file, "rb") as opened:
            start = opened.read(32)
    else:
        file.seek(0)
        start = file.read(32)
    if not start:
        return "is empty"
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc", b"heif"):
        return "is HEIC, which is not read; save it as JPEG or PNG"
    kind = next((kind for magic, kind in _OTHERS if start.lstrip().startswith(magic)), None)
    known = ", ".join(_formats())
    return f"is {kind}, not a picture that is read ({known})" if kind else f"is damaged, or no {known}"
