import io

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.decode import read_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "png", **options) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, kind, **options)
    file.seek(0)
    return file


def read(image: Image.Image, size: int, channels: int = 3, kind: str = "png", **options) -> np.ndarray:
    return read_image(encoded(image, kind, **options), "x", image_size=size, channels=channels)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)


def test_an_image_of_the_right_size_keeps_its_pixels():
    pixels = noise(6, 6)
    np.testing.assert_array_equal(read(Image.fromarray(pixels), 6), pixels)


def test_the_centre_is_cropped_along_the_longer_side():
    pixels = noise(4, 10)
    np.testing.assert_array_equal(read(Image.fromarray(pixels), 4), pixels[:, 3:7])
    np.testing.assert_array_equal(read(Image.fromarray(pixels.swapaxes(0, 1)), 4), pixels.swapaxes(0, 1)[3:7])


def test_pixels_outside_the_square_do_not_bleed_in():
    pixels = np.full((16, 48, 3), 255, np.uint8)
    pixels[:, 16:32] = 0
    assert read(Image.fromarray(pixels), 4).max() == 0


def test_shrinking_is_antialiased():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    interior = read(Image.fromarray(stripes), 8)[2:6, 2:6].astype(int)
    assert abs(interior - 127).max() < 12  # picking single pixels would give 0 or 255


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 4), WHITE)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    pixels = read(image, 4, exif=exif)
    np.testing.assert_array_equal(pixels[0, 3], RED)
    assert (pixels == WHITE).all(-1).sum() == 15


@pytest.mark.parametrize("kind", ["png", "webp"])
def test_transparency_is_composited_on_white(kind):
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    image.putpixel((0, 0), (*BLUE, 255))
    image.putpixel((1, 0), (0, 0, 0, 51))
    pixels = read(image, 2, kind=kind, **({"lossless": True, "exact": True} if kind == "webp" else {}))
    np.testing.assert_array_equal(pixels, [[BLUE, (204, 204, 204)], [WHITE, WHITE]])


def test_a_transparent_palette_colour_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([*GREEN, *BLUE])
    image.putdata([0, 1])
    np.testing.assert_array_equal(read(image, 1, transparency=0, kind="gif"), [[WHITE]])


def test_grey_becomes_rgb_and_rgb_becomes_grey():
    grey = noise(3, 3, 1)[..., 0]
    np.testing.assert_array_equal(read(Image.fromarray(grey), 3), np.repeat(grey[..., None], 3, axis=2))
    luma = read(Image.new("RGB", (3, 3), GREEN), 3, channels=1)
    assert luma.shape == (3, 3, 1)
    assert (luma == round(0.587 * 255)).all()


def test_sixteen_bit_grey_keeps_its_high_byte():
    levels = np.array([[0, 255], [256, 65535]], np.uint16)
    np.testing.assert_array_equal(read(Image.fromarray(levels), 2, channels=1)[..., 0], [[0, 0], [1, 255]])


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (2, 2), colour) for colour in (RED, GREEN)]
    pixels = read(frames[0], 2, kind="gif", save_all=True, append_images=frames[1:])
    assert (pixels == RED).all()


def test_cmyk_jpeg_is_read_in_its_true_colours():
    pixels = read(Image.new("RGB", (8, 8), WHITE).convert("CMYK"), 8, kind="jpeg")
    assert pixels.min() > 250  # without Adobe's inversion it would be black


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", encoded(Image.fromarray(noise(32, 32)), "jpeg").getvalue()[:-400],
     encoded(Image.fromarray(noise(32, 32))).getvalue()[:-400]],
    ids=["empty", "text", "truncated jpeg", "truncated png"],
)  # fmt: skip
def test_a_damaged_file_is_named_in_one_line(content):
    with pytest.raises(ValueError, match=r"^cannot read image cat/1\.jpg: .+$") as caught:
        read_image(io.BytesIO(content), "cat/1.jpg", image_size=8, channels=3)
    assert "\n" not in str(caught.value)
