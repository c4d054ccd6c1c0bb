"""sampling.gif: the reverse process, all images at once, from noise to the result; or noise, and what is read in it."""

import io
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from diffusion_jax.figures.files import write_atomically
from diffusion_jax.figures.grid import Grid
from diffusion_jax.figures.sheet import INK, PAPER, TRACK, Sheet, enlargement, to_rgb

MIN_CELL = 48
# With text under each image.
READ_CELL = 80
# GIF compresses noise badly: about half a byte for each of these, in every frame.
MOST_PIXELS = 120_000
# Fewer grey levels make runs of equal pixels longer; nobody sees it in a moving picture.
GREY_LEVELS = 32


def write_animation(
    path: str | os.PathLike[str],
    frames: ArrayLike,
    captions: Sequence[str],
    labels: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    frame_ms: int = 90,
    hold_ms: int = 2500,
) -> None:
    """Writes a GIF that runs for ever, with one palette for all frames.

    To keep the file small it shows only the first images, of classes as many each, if all are more than MOST_PIXELS.

    Args:
      path: of the file.
      frames: [T, N, H, W, 1 or 3], uint8 or float in [-1, 1]; the last one is the result.
      captions: for each frame, such as "t = 512, noise 0.83".
      labels, class_names, columns: as in `grid.draw_grid`.
      frame_ms, hold_ms: milliseconds that a frame and the last frame are shown.

    Raises:
      ValueError: frames of another shape, or not one caption each.
    """
    rgb = to_rgb(frames)
    if rgb.ndim != 5 or len(rgb) == 0:
        raise ValueError(f"frames must be [T, N, H, W, C], got shape {rgb.shape}")
    if len(captions) != len(rgb):
        raise ValueError(f"{len(rgb)} frames need as many captions, got {len(captions)}")
    images, classes = rgb.shape[1], None if labels is None else np.asarray(labels)
    shown = _shown(images, rgb.shape[2:4], classes)
    rgb, classes = rgb[:, shown], None if classes is None else classes[shown]
    grid = Grid(len(shown), rgb.shape[2:4], classes, class_names, columns=columns, min_cell=MIN_CELL, has_caption=True)
    last = max(1, len(rgb) - 1)
    pictures = [
        grid.draw(frame, caption, i / last if len(rgb) > 1 else 1.0)
        for i, (frame, caption) in enumerate(zip(rgb, captions, strict=True))
    ]
    _write(path, pictures, rgb, frame_ms, hold_ms)


def write_readings(
    path: str | os.PathLike[str],
    frames: ArrayLike,
    captions: Sequence[str],
    readings: Sequence[Sequence[str]],
    *,
    frame_ms: int = 250,
    hold_ms: int = 2500,
) -> None:
    """Writes a GIF of images under which something else is written in every frame.

    To keep the file small it shows only the first images if all are more than MOST_PIXELS.

    Args:
      path: of the file.
      frames: [T, N, H, W, 1 or 3], uint8 or float in [-1, 1].
      captions: for each frame.
      readings: [T][N], what stands under each image.
      frame_ms, hold_ms: milliseconds that a frame and the last frame are shown.
    """
    rgb = to_rgb(frames)
    shown = _shown(rgb.shape[1], rgb.shape[2:4], None)
    rgb = rgb[:, shown]
    columns = math.ceil(math.sqrt(1.8 * len(shown)))
    every = [label for labels in readings for label in labels]  # one size of letters for all frames
    sheet = Sheet(
        -(-len(shown) // columns), columns, rgb.shape[2:4], min_cell=READ_CELL, cell_labels=every, has_caption=True
    )
    pictures = [
        sheet.draw(list(frame), caption, (i + 1) / len(rgb), list(labels)[: len(shown)])
        for i, (frame, caption, labels) in enumerate(zip(rgb, captions, readings, strict=True))
    ]
    _write(path, pictures, rgb, frame_ms, hold_ms)


def _write(
    path: str | os.PathLike[str], drawn: Sequence[Image.Image], rgb: NDArray[np.uint8], frame_ms: int, hold_ms: int
) -> None:
    """The GIF of pictures that hold these images."""
    to_indices = _grey_indices if (rgb[..., :1] == rgb).all() else _colour_indices(rgb)
    pictures = [to_indices(picture) for picture in drawn]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer,
        "GIF",
        save_all=True,
        append_images=pictures[1:],
        duration=[frame_ms] * (len(pictures) - 1) + [hold_ms],
        loop=0,
        optimize=False,
    )
    write_atomically(path, buffer.getvalue())


def _shown(count: int, image_size: tuple[int, int], labels: NDArray[Any] | None) -> NDArray[np.int64]:
    """The images that fit in MOST_PIXELS: the first ones, of classes as many each."""
    factor = enlargement(image_size, MIN_CELL)
    most = max(1, MOST_PIXELS // (factor**2 * image_size[0] * image_size[1]))
    if count <= most or labels is None:
        return np.arange(min(count, most))
    classes = np.unique(labels)
    each = max(1, most // len(classes))
    return np.sort(np.concatenate([np.flatnonzero(labels == label)[:each] for label in classes])[:most])


def _grey_indices(picture: Image.Image) -> Image.Image:
    steps = GREY_LEVELS - 1
    indices = picture.convert("L").point([round(level * steps / 255) for level in range(256)])
    indices.putpalette([round(255 * i / steps) for i in range(GREY_LEVELS) for _ in range(3)])
    return indices


def _colour_indices(frames: NDArray[np.uint8]) -> Callable[[Image.Image], Image.Image]:
    """Maps pictures to one palette: the colours of the text, and those of the frames, most of them the last frame's."""
    # The edges of letters are mixtures of ink and paper.
    mixtures = [tuple(round(i + (p - i) * share) for i, p in zip(INK, PAPER, strict=True)) for share in (0.3, 0.6)]
    fixed = [PAPER, INK, TRACK, *mixtures]
    sample = np.concatenate([frames[:: max(1, len(frames) // 4)], np.repeat(frames[-1:], 6, axis=0)])
    mosaic = Image.fromarray(sample.reshape(-1, frames.shape[3], 3))
    colours = mosaic.quantize(256 - len(fixed), method=Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([value for colour in fixed for value in colour] + colours)

    def indices(picture: Image.Image) -> Image.Image:
        mapped = picture.quantize(palette=palette, dither=Image.Dither.NONE)
        # Pillow finds a colour that is near, not always the nearest, which shows on large white areas.
        is_paper = Image.fromarray((np.asarray(picture) == PAPER).all(axis=-1))
        mapped.paste(fixed.index(PAPER), mask=is_paper)
        return mapped

    return indices
