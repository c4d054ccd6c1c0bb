"""A sheet of small images in rows and columns with labels: what grids, strips and animations are made of."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

PAPER = (255, 255, 255)
INK = (64, 68, 76)
TRACK = (222, 225, 230)
# Labels wider than an image shrink to this share of the usual size before they are cut or placed elsewhere.
SMALLEST_FONT = 0.65


def to_rgb(images: ArrayLike) -> NDArray[np.uint8]:
    """uint8 [..., H, W, 3] of images [..., H, W, 1 or 3].

    The images are uint8, or float, of which [-1, 1] is shown and the rest clipped.
    Raises ValueError for another number of channels or axes.
    """
    array = np.asarray(images)
    if array.ndim < 3 or array.shape[-1] not in (1, 3):
        raise ValueError(f"images must be [..., H, W, 1 or 3], got shape {array.shape}")
    if array.dtype != np.uint8:
        array = np.floor(np.clip(array.astype(np.float32), -1, 1) * 127.5 + 128).clip(0, 255).astype(np.uint8)
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def enlargement(image_size: tuple[int, int], min_cell: int) -> int:
    """The least whole factor that makes both sides of an image at least `min_cell` pixels."""
    return max(1, math.ceil(min_cell / min(image_size)))


class Sheet:
    """The geometry of rows x columns images, and its drawing.

    Images are enlarged by a whole factor, each pixel a square, so that cells have at least `min_cell` pixels. Labels
    stand left of rows, above columns and under cells; a caption and a progress bar above all.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        image_size: tuple[int, int],
        *,
        min_cell: int,
        row_labels: Sequence[str] = (),
        column_labels: Sequence[str] = (),
        cell_labels: Sequence[str] = (),
        has_caption: bool = False,
    ):
        self.rows, self.columns = rows, columns
        self.factor = enlargement(image_size, min_cell)
        self.cell_height, self.cell_width = (side * self.factor for side in image_size)
        self.font_size = round(min(max(0.24 * min(self.cell_height, self.cell_width), 12), 26))
        self.gap = max(2, round(0.06 * min(self.cell_height, self.cell_width)))
        self.row_labels, self.column_labels, self.cell_labels = row_labels, column_labels, cell_labels
        self.column_font_size = self.fitting_font_size(column_labels) or self.font_size
        self.cell_font_size = self.fitting_font_size(cell_labels) or round(SMALLEST_FONT * self.font_size)
        line = round(1.6 * self.font_size)
        margin = round(0.8 * self.font_size)
        label_width = max((_font(self.font_size).getlength(label) for label in row_labels), default=0)
        self.left = margin + (math.ceil(label_width) + round(0.7 * self.font_size) if row_labels else 0)
        self.caption_height = 2 * line if has_caption else 0
        self.top = margin + self.caption_height + (line if column_labels else 0)
        self.row_pitch = self.cell_height + self.gap + (line if cell_labels else 0)
        self.width = self.left + columns * (self.cell_width + self.gap) - self.gap + margin
        self.height = self.top + rows * self.row_pitch - self.gap + margin
        self._margin, self._line = margin, line

    def fitting_font_size(self, labels: Sequence[str]) -> int | None:
        """The largest font size in which every label is narrower than a cell; None if that would be too small."""
        sizes = range(self.font_size, round(SMALLEST_FONT * self.font_size) - 1, -1)
        widest = max((_font(self.font_size).getlength(label) for label in labels), default=0) / self.font_size
        return next((size for size in sizes if widest * size <= 0.92 * self.cell_width), None)

    def cell_box(self, row: int, column: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge of a cell's image in pixels (right and bottom not included)."""
        left = self.left + column * (self.cell_width + self.gap)
        top = self.top + row * self.row_pitch
        return left, top, left + self.cell_width, top + self.cell_height

    def draw(
        self,
        images: Sequence[NDArray[np.uint8] | None],
        caption: str = "",
        progress: float | None = None,
        cell_labels: Sequence[str] = (),
    ) -> Image.Image:
        """The sheet with `images` (uint8 [H, W, 3], None for an empty cell) row by row.

        `caption` and `progress` (0 to 1) are shown if the sheet was made with has_caption, `cell_labels` instead of
        those that it was made with.
        """
        cell_labels = cell_labels or self.cell_labels
        picture = Image.new("RGB", (self.width, self.height), PAPER)
        draw = ImageDraw.Draw(picture)
        for index, image in enumerate(images):
            if image is not None:
                left, top, _, bottom = self.cell_box(*divmod(index, self.columns))
                enlarged = image.repeat(self.factor, axis=0).repeat(self.factor, axis=1)
                picture.paste(Image.fromarray(enlarged), (left, top))
                if self.cell_labels:
                    center = left + self.cell_width // 2
                    label = _cut(cell_labels[index], self.cell_font_size, self.cell_width)
                    _text(draw, (center, bottom + self._line // 2), label, "mm", self.cell_font_size)
        for row, label in enumerate(self.row_labels):
            _, top, _, bottom = self.cell_box(row, 0)
            _text(draw, (self.left - round(0.7 * self.font_size), (top + bottom) // 2), label, "rm", self.font_size)
        for column, label in enumerate(self.column_labels):
            left, top, right, _ = self.cell_box(0, column)
            _text(draw, ((left + right) // 2, top - self._line // 2), label, "mm", self.column_font_size)
        if self.caption_height:
            _text(draw, (self.left, self._margin + self._line // 2), caption, "lm", self.font_size)
        if progress is not None:
            right, top = self.width - self._margin, self._margin + self._line + self._line // 4
            height = max(3, self.font_size // 4)
            draw.rectangle((self.left, top, right - 1, top + height - 1), fill=TRACK)
            filled = self.left + round(progress * (right - self.left))
            if filled > self.left:
                draw.rectangle((self.left, top, filled - 1, top + height - 1), fill=INK)
        return picture


def _cut(text: str, font_size: int, width: int) -> str:
    """The text, cut with an ellipsis if it is wider than `width` pixels."""
    if _font(font_size).getlength(text) <= width:
        return text
    while text and _font(font_size).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _text(draw: ImageDraw.ImageDraw, position: tuple[int, int], text: str, anchor: str, font_size: int) -> None:
    draw.text(position, text, fill=INK, font=_font(font_size), anchor=anchor)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib carries DejaVu Sans, which has more than Latin letters; found on every machine, unlike system fonts.
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
