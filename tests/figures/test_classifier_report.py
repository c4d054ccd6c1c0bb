"""What is read in noisy images: the strip and the GIF with labels under the images, and the page about them."""

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.figures import animation, strips
from diffusion_jax.figures.classifier_report import ClassifierReport, write_classifier_report
from tests.figures.test_report import OVERVIEW, Page

IMAGES = np.zeros((2, 3, 8, 8, 1), np.float32)
READ = ["✓ 7 93%", "✗ 1 20%", "✓ 7 50%", "✗ 1 21%", "✓ 3 99%", "✗ 5 20%"]


def test_labels_stand_under_the_images_of_a_strip():
    plain, labelled = (
        np.asarray(strips.draw_strip(IMAGES, ["a", "b", "c"], ["7", "3"], labels)) for labels in ((), READ)
    )
    assert labelled.shape[0] > plain.shape[0] and labelled.shape[1] == plain.shape[1]
    with pytest.raises(ValueError, match="6 images need as many labels, got 5"):
        strips.draw_strip(IMAGES, ["a", "b", "c"], ["7", "3"], READ[:5])


def test_what_stands_under_an_image_changes_from_frame_to_frame(tmp_path):
    frames = np.zeros((2, 3, 8, 8, 1), np.float32)
    animation.write_readings(tmp_path / "a.gif", frames, ["t = 9", "t = 0"], [READ[:3], READ[3:]], frame_ms=50)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 2  # pyright: ignore[reportAttributeAccessIssue]
        first = np.asarray(gif.convert("L")).astype(int)
        gif.seek(1)
        second = np.asarray(gif.convert("L")).astype(int)
    changed = np.abs(first - second).max(axis=1) > 50
    assert (
        changed[: len(changed) // 4].any() and changed[len(changed) // 2 :].any()
    )  # the caption, and the labels below


def test_the_page_says_what_was_read_and_holds_everything(tmp_path):
    level = {"t": 0.0, "noise_to_signal": 0.1, "accuracy": 0.75, "top_5_accuracy": 0.95, "cross_entropy": 0.5}
    scores = {
        "accuracy": 0.5,
        "training_accuracy": 0.625,
        "chance": 0.125,
        "by_noise_level": [level, level | {"t": 99.0, "accuracy": 0.25}],
        "protocol": {"noise": "one draw for each <image>"},
    }
    rows = [{"step": i, "loss": 1 / i, "accuracy": 0.1 * i, "accuracy_noise_1_of_2": 0.2 * i} for i in (1, 2, 3)]
    picture = Image.new("RGB", (20, 10))
    report = ClassifierReport(
        "digits_classifier", "A small run.", "./launch/local.sh", {"seed": 0}, 1234, OVERVIEW, rows, scores,
        {"training_seconds": 5.0}, {"Devices": "2 x cpu"}, picture, picture,
    )  # fmt: skip
    write_classifier_report(tmp_path / "report.html", report)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.words)
    for said in ("50.0%", "62.5%", "75.0%", "12.5%", "1.23 k", "one draw for each <image>", "Top 5 accuracy"):
        assert said in text, said
    # loss, accuracy, accuracy by noise level in training, accuracy by noise level
    assert sum(tag == "svg" for tag, _ in page.elements) == 4
