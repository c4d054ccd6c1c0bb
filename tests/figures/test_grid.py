"""Every image of a grid is where its class says, enlarged without a change."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.figures import grid, sheet, strips


def uniform_images(count, side=8):
    """Image i is of one colour that tells i."""
    colours = np.stack([np.arange(count), 255 - np.arange(count), np.full(count, 7)], axis=1).astype(np.uint8)
    return np.broadcast_to(colours[:, None, None], (count, side, side, 3)).copy()


def index_shown(picture, layout, row, column):
    """Which of `uniform_images` fills a cell; None for an empty one."""
    left, top, right, bottom = layout.cell_box(row, column)
    (colour,) = np.unique(np.asarray(picture)[top:bottom, left:right].reshape(-1, 3), axis=0).tolist()
    return None if tuple(colour) == sheet.PAPER else colour[0]


def shown(images, labels=None, names=None, **options):
    layout = grid.Grid(len(images), images.shape[1:3], labels, names, **options).sheet
    picture = grid.draw_grid(images, labels, names, **options)
    assert picture.size == (layout.width, layout.height)
    cells = [
        [index_shown(picture, layout, row, column) for column in range(layout.columns)] for row in range(layout.rows)
    ]
    return layout, cells


def test_without_classes_in_reading_order():
    layout, cells = shown(uniform_images(5), columns=3)
    assert cells == [[0, 1, 2], [3, 4, None]]
    assert not layout.column_labels and not layout.row_labels


def test_classes_with_short_names_are_columns():
    layout, cells = shown(uniform_images(5), np.array([7, 2, 7, 2, 7]))
    assert layout.column_labels == ["2", "7"]
    assert cells == [[1, 0], [3, 2], [None, 4]]


def test_classes_with_long_names_are_rows():
    names = ["a name that is much too long for one image", "short", "another"]
    layout, cells = shown(uniform_images(5), np.array([0, 1, 0, 1, 0]), names)
    assert layout.row_labels == names[:2]
    assert cells == [[0, 2, 4], [1, 3, None]]


def test_many_classes_are_written_under_their_images():
    names = [f"class {i}" for i in range(40)]
    layout, cells = shown(uniform_images(20), np.arange(20)[::-1].copy(), names, columns=10)
    assert layout.cell_labels == names[19::-1]
    assert cells == [list(range(10)), list(range(10, 20))]


def test_pixels_become_squares():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 6, 1), dtype=np.uint8)
    layout = grid.Grid(1, (8, 6)).sheet
    picture = np.asarray(grid.draw_grid(image).crop(layout.cell_box(0, 0)))
    assert min(picture.shape[:2]) >= 96
    factor = picture.shape[0] // 8
    assert picture.shape == (8 * factor, 6 * factor, 3)
    np.testing.assert_array_equal(picture, image[0].repeat(3, 2).repeat(factor, 0).repeat(factor, 1))


def test_labels_are_drawn_outside_the_images():
    """Ink above the columns, none where no label is; the images themselves are covered by nothing."""
    images = np.full((2, 8, 8, 1), 255, np.uint8)
    labelled, plain = (np.asarray(grid.draw_grid(images, labels)) for labels in (np.array([3, 3]), None))
    top = grid.Grid(2, (8, 8), np.array([3, 3])).sheet.cell_box(0, 0)[1]
    assert (labelled[:top] < 128).any()
    assert (labelled[top:] == 255).all() and (plain == 255).all()


def test_float_images_are_clipped_and_rounded():
    values = np.array([-1.5, -1.0, 0.0, 1.0, 3.0], np.float32)
    assert sheet.to_rgb(values.reshape(1, 5, 1))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_file_is_a_png(tmp_path):
    grid.write_grid(tmp_path / "samples.png", uniform_images(3))
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(grid.draw_grid(uniform_images(3))))


def test_strip_has_images_in_rows_and_times_in_columns(tmp_path):
    images = uniform_images(6).reshape(2, 3, 8, 8, 3)
    strips.write_strip(tmp_path / "strip.png", images, ["t = 2", "t = 1", "t = 0"], ["a", "b"])
    layout = sheet.Sheet(2, 3, (8, 8), min_cell=96, row_labels=["a", "b"], column_labels=["t = 2", "t = 1", "t = 0"])
    with Image.open(tmp_path / "strip.png") as picture:
        assert [[index_shown(picture, layout, row, column) for column in range(3)] for row in range(2)] == [
            [0, 1, 2],
            [3, 4, 5],
        ]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid.draw_grid(np.zeros((2, 8, 8, 4), np.uint8)), "images must be"),
        (lambda: grid.draw_grid(np.zeros((8, 8, 3), np.uint8)), r"images must be \[N, H, W, C\]"),
        (lambda: grid.draw_grid(np.zeros((0, 8, 8, 3), np.uint8)), "no images to show"),
        (lambda: grid.draw_grid(np.zeros((2, 8, 8, 3), np.uint8), [1]), "one entry for each of the 2 images"),
        (lambda: grid.draw_grid(np.zeros((2, 8, 8, 3), np.uint8), columns=0), "columns must be at least 1"),
        (lambda: strips.draw_strip(np.zeros((2, 3, 8, 8, 1)), ["a"]), "2 rows and 3 columns need as many labels"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
