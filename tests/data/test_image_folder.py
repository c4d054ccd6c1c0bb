import os

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.data.sources import image_folder


def write(folder, *names, value=128, size=(6, 4)):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (value, value, value)).save(path)


def load(folder, split="train", channels=3):
    return image_folder.load(folder, split, image_size=4, channels=channels)


def counts(source):
    assert source.class_names is not None
    return {
        source.class_names[label]: n
        for label, n in enumerate(np.bincount([e["condition"]["label"] for e in source]))
        if n
    }


def test_sub_folders_are_classes(tmp_path):
    write(tmp_path, *(f"dog/{i}.png" for i in range(3)), value=200)
    write(tmp_path, *(f"cat/{i}.PNG" for i in range(3)), "cat/deep/down/9.jpeg", value=50)
    write(tmp_path, "ox.gif/a.webp", "ox.gif/a.bmp", "ox.gif/x.gif")
    source = load(tmp_path)
    assert source.class_names == ("cat", "dog", "ox.gif")
    assert source.num_classes == 3
    assert source.image_shape == (4, 4, 3)
    for example in source:
        assert example["image"].shape == (4, 4, 3)
        assert example["image"].dtype == np.uint8
        assert example["condition"]["label"].dtype == np.int32
    cats = [e["image"].mean() for e in source if e["condition"]["label"] == 0]
    np.testing.assert_allclose(cats, 50, atol=2)
    everything = {*source.files, *load(tmp_path, "test").files}
    assert {file for file in everything if file.startswith("cat")} == {
        "cat/0.PNG", "cat/1.PNG", "cat/2.PNG", "cat/deep/down/9.jpeg",
    }  # fmt: skip


def test_a_flat_folder_has_no_labels(tmp_path):
    write(tmp_path, *(f"{i:02}.png" for i in range(20)))
    source = load(tmp_path, channels=1)
    assert source.num_classes is None
    assert source.class_names is None
    assert source[0]["image"].shape == (4, 4, 1)
    assert all(not example["condition"] for example in source)


@pytest.mark.parametrize("name", ["test", "val"])
def test_split_folders_are_the_splits(tmp_path, name):
    write(tmp_path, "train/a/1.png", "train/b/1.png", "train/c/1.png", f"{name}/c/2.png", f"{name}/c/3.png")
    assert counts(load(tmp_path)) == {"a": 1, "b": 1, "c": 1}
    held_out = load(tmp_path, "test")
    assert held_out.class_names == ("a", "b", "c")  # the labels of the training split, though only c occurs
    assert counts(held_out) == {"c": 2}


def test_a_train_folder_alone_is_split_like_its_contents(tmp_path):
    write(tmp_path / "bare", *(f"a/{i}.png" for i in range(30)))
    write(tmp_path / "train_only" / "train", *(f"a/{i}.png" for i in range(30)))
    assert load(tmp_path / "train_only").class_names == ("a",)
    assert load(tmp_path / "train_only", "test").files == load(tmp_path / "bare", "test").files


def test_a_tenth_is_held_out_and_stays_held_out(tmp_path):
    write(tmp_path, *(f"a/{i}.png" for i in range(200)), size=(1, 1))
    train, test = set(load(tmp_path).files), set(load(tmp_path, "test").files)
    assert not train & test
    assert len(train | test) == 200
    assert 10 <= len(test) <= 30
    write(tmp_path, *(f"a/more{i}.png" for i in range(100)), size=(1, 1))
    assert train <= set(load(tmp_path).files)
    assert test <= set(load(tmp_path, "test").files)


def test_a_tiny_class_stays_in_training(tmp_path):
    write(tmp_path, *(f"big/{i}.png" for i in range(40)), *(f"tiny{c}/only.png" for c in range(40)), size=(1, 1))
    assert len(counts(load(tmp_path))) == 41  # by the hash alone, four of the tiny classes would lose their only image


@pytest.mark.parametrize("count", [2, 3, 4])
def test_something_is_held_out_of_few_images(tmp_path, count):
    write(tmp_path, *(f"{i}.png" for i in range(count)))
    assert len(load(tmp_path, "test")) >= 1
    assert len(load(tmp_path)) + len(load(tmp_path, "test")) == count


def test_other_files_are_ignored(tmp_path):
    write(tmp_path, "a/1.png", "a/2.png", "a/.hidden.png", "a/.cache/3.png", ".git/x/4.png")
    (tmp_path / "README.md").write_text("no image")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    outside = tmp_path.parent / "outside"
    write(outside, "5.png")
    (tmp_path / "a" / "photo.heic").write_text("no image")
    files = load(tmp_path).files + load(tmp_path, "test").files
    assert sorted(files) == ["a/1.png", "a/2.png"]
    assert load(tmp_path).passed_over == {".txt": 1, ".md": 1, ".heic": 1}
    assert image_folder.counted(load(tmp_path).passed_over) == "1 .heic, 1 .md, 1 .txt"
    link = tmp_path.parent / "link"
    os.symlink(tmp_path, link)
    assert load(link).files == load(tmp_path).files  # the folder itself may be a link


def test_links_are_followed_once(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside"
    write(root, "a/1.png", "a/2.png")
    write(outside, "5.png", "deep/6.jfif")
    os.symlink(outside, root / "b")
    os.symlink(outside / "5.png", root / "a" / "link.png")
    os.symlink(root, root / "a" / "up")  # would never end
    os.symlink(root / "gone", root / "a" / "gone")
    source = load(root)
    files = source.files + load(root, "test").files
    assert sorted(files) == ["a/1.png", "a/2.png", "a/link.png", "b/5.png", "b/deep/6.jfif"]
    assert source.passed_over == {"links to folders above": 1, "broken links": 1}


def test_a_corrupt_file_is_found_when_it_is_read_and_named(tmp_path):
    write(tmp_path, "a/1.png", "a/2.png", "a/3.png")
    source = load(tmp_path)
    (tmp_path / source.files[0]).write_bytes(b"\x89PNG\r\n")
    assert len(load(tmp_path)) == len(source)
    assert source[1]["image"].shape == (4, 4, 3)
    with pytest.raises(ValueError, match=rf"cannot read image .*{source.files[0]}: .+"):
        source[0]


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        ([], "train", r"no images in .* \(looked for .avif, .bmp, .*hidden files are ignored\)"),
        (["readme.txt"], "train", "no images in"),
        (["a/1.png", "b/readme.txt"], "train", r"class folder .*b has no images"),
        (["a/1.png", "2.png"], "train", r"class folders \(a\) and images beside them \(2.png\)"),
        (["a/1.png"], "test", "too few images"),
        (["train/a/1.png", "test/b/1.png"], "test", "class 'b' of .*test is not a class of .*train"),
        (["train/a/1.png", "val/1.png"], "test", "train/ has class folders and val/ has none"),
        (["train/1.png", "val/a/1.png"], "test", "val/ has class folders and train/ has none"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, names, split, message):
    for name in names:
        if name.endswith(".png"):
            write(tmp_path, name)
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path, split)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_a_file_in_its_place(tmp_path):
    with pytest.raises(ValueError, match=r"there is nothing at .*nowhere"):
        load(tmp_path / "nowhere")
    write(tmp_path, "1.png")
    with pytest.raises(ValueError, match="there is a file at"):
        load(tmp_path / "1.png")
