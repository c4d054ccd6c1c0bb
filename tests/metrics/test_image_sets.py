"""Every container gives the same images in a fixed order; what cannot be read is reported, not skipped."""

import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.metrics import image_sets

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), np.uint8)
NAMES = ("a/x.png", "a/y.webp", "b.bmp", "c/d/e.png", "z.PNG")


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for name, image in zip(NAMES, IMAGES, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / name, **({"lossless": True} if name.endswith("webp") else {}))
    (root / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    Image.fromarray(IMAGES[0]).save(root / ".hidden" / "h.png")
    return root


def contents(images):
    items = list(images)
    assert len(items) == len(images)
    return [item.name for item in items], np.stack([item.image for item in items])


def test_folder(folder):
    images = image_sets.open_images(str(folder))
    names, pixels = contents(images)
    assert names == sorted(NAMES)
    np.testing.assert_array_equal(pixels, IMAGES)
    assert images.lossy == 1


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz"])
def test_archives(folder, tmp_path, suffix):
    path = tmp_path / f"images{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in reversed(NAMES):  # the order of a .zip is that of its names
                archive.write(folder / file, file)
    else:
        with tarfile.open(path, "w:gz" if suffix.endswith("gz") else "w") as archive:
            for file in NAMES:
                archive.add(folder / file, file)
    names, pixels = contents(image_sets.open_images(str(path)))
    assert names == sorted(NAMES)
    np.testing.assert_array_equal(pixels, IMAGES)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, save):
    save(tmp_path / "x.npz", arr_0=IMAGES, arr_1=np.arange(5))
    _, pixels = contents(image_sets.open_images(str(tmp_path / "x.npz")))
    np.testing.assert_array_equal(pixels, IMAGES)
    save(tmp_path / "grey.npz", images=IMAGES[..., :1])
    _, pixels = contents(image_sets.open_images(str(tmp_path / "grey.npz")))
    np.testing.assert_array_equal(pixels, np.repeat(IMAGES[..., :1], 3, -1))


def test_modes(tmp_path):
    """Grey, palette, transparent and 16-bit images as every reference reads them."""
    grey = IMAGES[0, :, :, 0]
    for name, image in {
        "0.png": Image.fromarray(grey),
        "1.png": Image.fromarray(IMAGES[0]).convert("P", palette=Image.Palette.ADAPTIVE),
        "2.png": Image.fromarray(np.concatenate([IMAGES[0], grey[..., None]], -1)),
        "3.png": Image.fromarray(grey.astype(np.uint16) * 256 + 7),
    }.items():
        image.save(tmp_path / name)
    _, pixels = contents(image_sets.open_images(str(tmp_path)))
    np.testing.assert_array_equal(pixels[0], np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(pixels[1], IMAGES[0])  # fewer colours than the palette has
    np.testing.assert_array_equal(pixels[2], IMAGES[0])
    np.testing.assert_array_equal(pixels[3], pixels[0])


def test_unreadable_images_are_reported_in_their_place(folder, tmp_path):
    whole = (folder / "b.bmp").read_bytes()
    (folder / "b.bmp").write_bytes(whole[: len(whole) // 2])
    (folder / "z.PNG").write_bytes(b"nothing")
    items = list(image_sets.open_images(str(folder)))
    assert [isinstance(item.image, str) for item in items] == [False, False, True, False, True]
    assert "truncated" in items[2].image
    assert items[4].image.startswith("is damaged, or no ")
    # a file that ends early: an .npz of ADM's that was not downloaded whole
    np.savez(tmp_path / "x.npz", arr_0=IMAGES)
    short = image_sets.open_images(str(tmp_path / "x.npz"))
    short._shape = (7, *short._shape[1:])
    assert [item.image for item in short][5:] == ["the file ends before it"] * 2
    # column by column, as Fortran and MATLAB write
    np.savez(tmp_path / "f.npz", arr_0=np.asfortranarray(IMAGES))
    _, pixels = contents(image_sets.open_images(str(tmp_path / "f.npz")))
    np.testing.assert_array_equal(pixels, IMAGES)


def test_hash_is_of_content_and_order(folder, tmp_path):
    before = image_sets.open_images(str(folder)).sha256()
    (folder / "z.PNG").rename(folder / "zz.png")
    assert image_sets.open_images(str(folder)).sha256() == before
    (folder / "zz.png").rename(folder / "0.png")
    assert image_sets.open_images(str(folder)).sha256() != before
    encoded = image_sets.EncodedImages([b"ab", b"c"], "t")
    assert encoded.sha256() != image_sets.EncodedImages([b"a", b"bc"], "t").sha256()


def test_loaders_are_asked_for_names_with_their_prefix(folder):
    files = [(folder / name).read_bytes() for name in NAMES]
    loaders = {"tfds": lambda name: image_sets.EncodedImages(files, f"tfds:{name}")}
    images = image_sets.open_images("tfds:cifar10/train", loaders)
    names, pixels = contents(images)
    assert names[1] == "tfds:cifar10/train[1]"
    np.testing.assert_array_equal(pixels, IMAGES)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "no images in it"),
        (lambda path: path.write_text("x"), "is not a folder"),
        (lambda path: path.with_suffix(".zip").write_text("x"), "is no readable .zip archive"),
        (lambda path: path.with_suffix(".tar").write_text("x"), "is no readable .tar archive"),
        (lambda path: path.with_suffix(".npz").write_text("x"), "is no readable .npz archive"),
        (lambda path: np.savez(path.with_suffix(".npz"), arr_0=np.zeros((2, 3))), "expected uint8 images"),
        (lambda path: np.savez(path.with_suffix(".npz"), a=IMAGES, b=IMAGES), "expected images under arr_0"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, make, message):
    make(tmp_path / "x")
    name = next(iter(sorted(tmp_path.iterdir())), tmp_path / "x")
    with pytest.raises(image_sets.ImageSetError, match=message):
        image_sets.open_images(str(name))
