"""One table of kinds of picture files, through every door that pictures come in by."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.decode import read_image
from diffusion_jax.jobs import pipeline
from diffusion_jax.metrics import image_sets
from diffusion_jax.readers import ReadError, images

SIZE = 8
RGB = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
GREY = RGB[..., 0]


def grey3(levels):
    return np.repeat(np.asarray(levels, np.uint8)[..., None], 3, -1)


def file(image, kind="png", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return file(Image.fromarray(RGB), exif=exif)


SEE_THROUGH = np.dstack([RGB, np.where(np.arange(SIZE) < 4, 0, 255)[None].repeat(SIZE, 0)]).astype(np.uint8)
ON_WHITE = np.where(np.arange(SIZE)[None, :, None] < 4, 255, RGB).astype(np.uint8)
PALETTE = Image.fromarray(GREY // 64 * 64).convert("P")
BITS = GREY > 127
CMYK = Image.fromarray(RGB).convert("CMYK")

# name -> (content of the file, what is seen, what is measured where that differs)
KINDS = {
    "rgb.png": (file(Image.fromarray(RGB)), RGB),
    "grey.png": (file(Image.fromarray(GREY)), grey3(GREY)),
    "one_bit.png": (file(Image.fromarray(BITS)), grey3(BITS * 255)),
    "palette.gif": (file(PALETTE, "gif"), grey3(GREY // 64 * 64)),
    "sixteen.png": (file(Image.fromarray(GREY.astype(np.uint16) * 256 + 7)), grey3(GREY)),
    "sixteen.tiff": (file(Image.fromarray(GREY.astype(np.uint16) * 256 + 7), "tiff"), grey3(GREY)),
    "wide.tiff": (file(Image.fromarray(GREY.astype(np.int32) * 256), "tiff"), grey3(GREY)),
    "unit_floats.tiff": (file(Image.fromarray(GREY.astype(np.float32) / 255), "tiff"), grey3(GREY)),
    "floats.tiff": (file(Image.fromarray(GREY.astype(np.float32)), "tiff"), grey3(GREY)),
    "alpha.png": (file(Image.fromarray(SEE_THROUGH)), ON_WHITE, RGB),
    "grey_alpha.png": (file(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(GREY * 0 + 255)])), grey3(GREY)),
    "cmyk.tiff": (file(CMYK, "tiff"), np.asarray(CMYK.convert("RGB"))),
    "lossless.webp": (file(Image.fromarray(RGB), "webp", lossless=True), RGB),
    "plain.bmp": (file(Image.fromarray(RGB), "bmp"), RGB),
    "plain.ppm": (file(Image.fromarray(RGB), "ppm"), RGB),
    "lossless.jp2": (file(Image.fromarray(RGB), "jpeg2000", irreversible=False), RGB),
    "moving.gif": (file(PALETTE, "gif", save_all=True, append_images=[PALETTE.rotate(90)]), grey3(GREY // 64 * 64)),
    "upside_down.png": (turned(3), RGB[::-1, ::-1], RGB),
    "on_its_side.png": (turned(6), np.rot90(RGB, -1), RGB),
    "mirrored.png": (turned(2), RGB[:, ::-1], RGB),
    "other_name.jpg": (file(Image.fromarray(RGB)), RGB),  # the content counts
}
LOSSY = {
    name: file(Image.fromarray(RGB).resize((32, 32), Image.Resampling.BICUBIC).resize((SIZE, SIZE)), kind, **options)
    for name, kind, options in (("a.jpg", "jpeg", {"quality": 95}), ("a.jfif", "jpeg", {"quality": 95}))
}
if "AVIF" in images._formats():
    LOSSY["a.avif"] = file(Image.fromarray(RGB), "avif", quality=90)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_seen_alike_by_training_and_command(name, tmp_path):
    content, seen, *_ = KINDS[name]
    path = tmp_path / name
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path, name, image_size=SIZE, channels=3), seen)
    for flag in ("image", "mask", "control_image"):
        np.testing.assert_allclose(pipeline._read(str(path), flag, None) * 255, seen, atol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_measured_as_the_file_has_it(name, tmp_path):
    """Without turning and without a background, as the reference implementations measure."""
    content, seen, *measured = KINDS[name]
    (tmp_path / name).write_bytes(content)
    [item] = image_sets.open_images(str(tmp_path))
    np.testing.assert_array_equal(item.image, measured[0] if measured else seen)


@pytest.mark.parametrize("name", LOSSY)
def test_kinds_with_losses_are_read(name, tmp_path):
    (tmp_path / name).write_bytes(LOSSY[name])
    assert read_image(tmp_path / name, name, image_size=SIZE, channels=3).shape == (SIZE, SIZE, 3)
    [item] = image_sets.open_images(str(tmp_path))
    assert item.image.std() > 10


# --- What is not read, and says why. --------------------------------------------------------------


def png_header(width, height, depth=1, colour=0):
    """A PNG that says it has so many pixels, and has none."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10)))


BROKEN = {
    "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(x) print\n", "is PostScript, not a picture"),
    "page.jpg": (b"<html><body>404</body></html>", "is a web page, not a picture"),
    "drawing.png": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "is SVG; draw it as a PNG first"),
    "phone.jpg": (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "is HEIC, which is not read"),
    "empty.png": (b"", "is empty"),
    "huge.png": (png_header(13_000, 13_000), "has 13000 x 13000 pixels; 100 million are the most"),
    "larger.png": (png_header(60_000, 60_000), "million pixels, which are the most|million are the most"),
    "huge.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3), "million|damaged|no frame|cannot"),
    "cut.png": (KINDS["rgb.png"][0][:60], "truncated|broken|unrecognized|damaged"),
    "negative.tiff": (file(Image.fromarray(GREY.astype(np.float32) - 300), "tiff"), "has floats from"),
    "noise.png": (bytes(range(256)), "is damaged, or no"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_one_line(name, tmp_path):
    content, said = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(content)
    for read in (
        lambda: images.decode(path),
        lambda: images.decode(io.BytesIO(content)),
        lambda: read_image(path, name, image_size=SIZE, channels=3),
        lambda: pipeline._read(str(path), "image", None),
        lambda: image_sets.decode(path),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            read()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 300 + len(str(path))


def test_postscript_starts_nothing(tmp_path, monkeypatch):
    """Pillow gives PostScript to Ghostscript, which is a language."""
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    (tmp_path / "x.png").write_bytes(BROKEN["eps.png"][0])
    with pytest.raises(ReadError, match="PostScript"):
        images.decode(tmp_path / "x.png")
