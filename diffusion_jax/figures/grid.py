"""samples.png: generated images in a grid, by class where there are classes."""

import functools
import io
import math
import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from diffusion_jax.figures.files import write_atomically
from diffusion_jax.figures.sheet import Sheet, to_rgb

# More classes than this get a label under each image instead of a row or column each.
MOST_LINES = 16


class Grid:
    """Where each of N images goes: a column for each class if the names fit, a row if not, else reading order.

    Args:
      count: number of images N.
      image_size: (height, width).
      labels: int [N]; None for images without classes.
      class_names: by label; the numbers by default.
      columns: of a grid without classes (or with too many); near twice as many as rows by default.
      min_cell: least side of an enlarged image in pixels.
      has_caption: leaves room for a caption above.
    """

    def __init__(
        self,
        count: int,
        image_size: tuple[int, int],
        labels: ArrayLike | None = None,
        class_names: Sequence[str] | None = None,
        *,
        columns: int | None = None,
        min_cell: int = 96,
        has_caption: bool = False,
    ):
        if count < 1:
            raise ValueError("there are no images to show")
        if columns is not None and columns < 1:
            raise ValueError(f"columns must be at least 1, got {columns}")
        self._cells = list(range(count))
        columns = min(count, columns or math.ceil(math.sqrt(1.8 * count)))
        rows = math.ceil(count / columns)

        sheet = functools.partial(Sheet, image_size=image_size, min_cell=min_cell, has_caption=has_caption)
        self.sheet = sheet(rows, columns)
        if labels is None:
            return
        values = np.asarray(labels)
        if values.shape != (count,):
            raise ValueError(f"labels must have one entry for each of the {count} images, got shape {values.shape}")
        classes = [int(label) for label in np.unique(values)]
        names = {label: str(label) if class_names is None else class_names[label] for label in classes}
        if len(classes) > MOST_LINES or len(classes) == count:
            self.sheet = sheet(rows, columns, cell_labels=[names[label] for label in values.tolist()])
            return
        members = [np.flatnonzero(values == label).tolist() for label in classes]
        longest = max(map(len, members))
        lines = [line + [-1] * (longest - len(line)) for line in members]
        titles = list(names.values())
        if self.sheet.fitting_font_size(titles):
            self.sheet = sheet(longest, len(classes), column_labels=titles)
            self._cells = [line[row] for row in range(longest) for line in lines]
        else:
            self.sheet = sheet(len(classes), longest, row_labels=titles)
            self._cells = [index for line in lines for index in line]

    def draw(self, images: NDArray[np.uint8], caption: str = "", progress: float | None = None) -> Image.Image:
        """The picture of images uint8 [N, H, W, 3]."""
        return self.sheet.draw([images[i] if i >= 0 else None for i in self._cells], caption, progress)


def draw_grid(
    images: ArrayLike,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    *,
    columns: int | None = None,
) -> Image.Image:
    """A labelled grid of images [N, H, W, 1 or 3], uint8 or float in [-1, 1]; the other arguments as in `Grid`.

    Raises ValueError for images of another shape, none at all, or labels that do not fit.
    """
    rgb = to_rgb(images)
    if rgb.ndim != 4:
        raise ValueError(f"images must be [N, H, W, C], got shape {rgb.shape}")
    return Grid(len(rgb), rgb.shape[1:3], labels, class_names, columns=columns).draw(rgb)


def write_grid(
    path: str | os.PathLike[str],
    images: ArrayLike,
    labels: ArrayLike | None = None,
    class_names: Sequence[str] | None = None,
    *,
    columns: int | None = None,
) -> None:
    """Writes `draw_grid` as a PNG file."""
    write_atomically(path, png(draw_grid(images, labels, class_names, columns=columns)))


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
