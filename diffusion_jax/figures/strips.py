"""Strips: one image in each row, one time in each column. Left to right a process runs, forward or in reverse."""

import os
from collections.abc import Sequence

from numpy.typing import ArrayLike
from PIL import Image

from diffusion_jax.figures.files import write_atomically
from diffusion_jax.figures.grid import png
from diffusion_jax.figures.sheet import Sheet, to_rgb


def draw_strip(
    images: ArrayLike, column_labels: Sequence[str], row_labels: Sequence[str] = (), cell_labels: Sequence[str] = ()
) -> Image.Image:
    """A strip of images [rows, times, H, W, 1 or 3], uint8 or float in [-1, 1], with a label above each time.

    cell_labels, if there are any, stand under the images, row by row.

    Raises ValueError for images of another shape or labels that do not fit.
    """
    rgb = to_rgb(images)
    if rgb.ndim != 5 or 0 in rgb.shape[:2]:
        raise ValueError(f"images must be [rows, times, H, W, C], got shape {rgb.shape}")
    rows, columns = rgb.shape[:2]
    if len(column_labels) != columns or len(row_labels) not in (0, rows):
        raise ValueError(
            f"{rows} rows and {columns} columns need as many labels, got {len(row_labels)} and {len(column_labels)}"
        )
    if len(cell_labels) not in (0, rows * columns):
        raise ValueError(f"{rows * columns} images need as many labels, got {len(cell_labels)}")
    sheet = Sheet(
        rows,
        columns,
        rgb.shape[2:4],
        min_cell=96,
        row_labels=list(row_labels),
        column_labels=list(column_labels),
        cell_labels=list(cell_labels),
    )
    return sheet.draw(list(rgb.reshape(rows * columns, *rgb.shape[2:])))


def write_strip(
    path: str | os.PathLike[str],
    images: ArrayLike,
    column_labels: Sequence[str],
    row_labels: Sequence[str] = (),
    cell_labels: Sequence[str] = (),
) -> None:
    """Writes `draw_strip` as a PNG file."""
    write_atomically(path, png(draw_strip(images, column_labels, row_labels, cell_labels)))
