"""The animation has every frame, ends on the result and holds it, in colours that are right."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.figures import animation
from diffusion_jax.figures.grid import Grid


def noise_to_image(images, steps):
    noise = np.random.default_rng(0).normal(size=images.shape)
    shares = np.linspace(0, 1, steps).reshape(-1, 1, 1, 1, 1)
    return (shares * images + (1 - shares) * noise).astype(np.float32)


def read(path):
    with Image.open(path) as file:
        frames, durations = [], []
        for index in range(getattr(file, "n_frames", 1)):
            file.seek(index)
            frames.append(np.asarray(file.convert("RGB")))
            durations.append(file.info["duration"])
        return frames, durations, file.info.get("loop")


@pytest.mark.parametrize("channels", [1, 3])
def test_frames_durations_and_result(tmp_path, channels):
    images = np.random.default_rng(1).choice([-1.0, 0.2, 1.0], size=(6, 8, 8, channels))
    labels = np.arange(6) % 3
    frames = noise_to_image(images, 7)
    captions = [f"t = {t}" for t in range(6, -1, -1)]
    animation.write_animation(tmp_path / "a.gif", frames, captions, labels, frame_ms=70, hold_ms=900)
    shown, durations, loop = read(tmp_path / "a.gif")
    assert len(shown) == 7
    assert durations == [70] * 6 + [900]
    assert loop == 0
    sheet = Grid(6, (8, 8), labels, min_cell=animation.MIN_CELL, has_caption=True).sheet
    # Labels 0, 1, 2 are columns: row 1, column 2 is the second image of class 2.
    left, top, right, bottom = sheet.cell_box(1, 2)
    result = shown[-1][top:bottom, left:right].astype(float)
    expected = np.repeat((images[5] + 1) * 127.5, 3 // channels, axis=-1)
    np.testing.assert_allclose(result, expected.repeat(sheet.factor, 0).repeat(sheet.factor, 1), atol=9)
    first = shown[0][top:bottom, left:right].astype(float)
    assert np.abs(first - result).mean() > 30


def test_all_frames_share_one_palette(tmp_path):
    images = np.random.default_rng(1).uniform(-1, 1, size=(20, 8, 8, 3))
    animation.write_animation(tmp_path / "a.gif", noise_to_image(images, 5), [""] * 5)
    colours = [set(map(tuple, frame.reshape(-1, 3).tolist())) for frame in read(tmp_path / "a.gif")[0]]
    assert min(map(len, colours)) > 150
    assert all((255, 255, 255) in frame for frame in colours)
    assert len(set.union(*colours)) <= 256


def test_progress_grows(tmp_path):
    frames = noise_to_image(np.ones((4, 8, 8, 1)), 4)
    animation.write_animation(tmp_path / "a.gif", frames, ["same"] * 4)
    shown, _, _ = read(tmp_path / "a.gif")
    sheet = Grid(4, (8, 8), min_cell=animation.MIN_CELL, has_caption=True).sheet
    above = [(frame[: sheet.cell_box(0, 0)[1]] < 128).sum() for frame in shown]
    assert above == sorted(above) and len(set(above)) == 4


def test_only_as_many_images_as_keep_the_file_small():
    labels = np.array([0] * 50 + [1] * 50 + [2] * 50)
    chosen = animation._shown(150, (32, 32), labels)
    counts = np.bincount(labels[chosen])
    assert len(set(counts)) == 1
    assert len(chosen) * 64 * 64 <= animation.MOST_PIXELS < (len(chosen) + 3) * 64 * 64
    assert animation._shown(150, (8, 8), None).tolist() == list(range(animation.MOST_PIXELS // 48**2))
    assert animation._shown(3, (8, 8), None).tolist() == [0, 1, 2]
    assert animation._shown(4, (512, 512), np.arange(4)).tolist() == [0]


def test_one_frame_is_enough(tmp_path):
    animation.write_animation(tmp_path / "a.gif", np.zeros((1, 2, 8, 8, 1)), ["t = 0"])
    assert len(read(tmp_path / "a.gif")[0]) == 1


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="2 frames need as many captions, got 1"):
        animation.write_animation(tmp_path / "a.gif", np.zeros((2, 2, 8, 8, 1)), ["t = 0"])
    with pytest.raises(ValueError, match="frames must be"):
        animation.write_animation(tmp_path / "a.gif", np.zeros((2, 8, 8, 1)), ["", ""])
    assert not list(tmp_path.iterdir())
