"""The report holds everything inside itself, says what it is given, and trusts no text."""

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from diffusion_jax.figures import diffusion_report
from diffusion_jax.figures.report import Report, write_report

VOID = {"meta", "img", "br", "line", "path"}
OVERVIEW = """
+-------------+---------+------+
| Name        | Shape   | Size |
+-------------+---------+------+
| conv/bias   | (8,)    | 8    |
| conv/kernel | (3, 3)  | 9    |
+-------------+---------+------+
Total: 17 -- 68 bytes
"""


class Page(HTMLParser):
    """Collects the elements and the visible text; fails on a tag that closes nothing."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    pictures = [Image.new("RGB", (20 + i, 10), (i, 0, 0)) for i in range(4)]
    pictures[0].save(folder / "samples.png")
    pictures[1].save(folder / "sampling.gif")
    scores = {
        "frechet_distance_classifier": 2.5,
        "frechet_distance_classifier_train_test": 1.25,
        "frechet_distance_classifier_train_test_std": 0.05,
        "frechet_distance_classifier_ratio": 2.0,
        "read_as_requested": 0.975,
        "read_as_requested_per_class": {"zero": 1.0, "one": 0.95},
        "classifier_test_accuracy": 0.99,
        "protocol": {"features": "classifier-digits-64", "classifier": {"seed": 3}, "guidance_scale": None},
    }
    rows = [
        {"step": 10 * i, "loss": 1 / i, "loss_noise_1_of_2": 2 / i, "loss_noise_2_of_2": 0.5 / i} for i in (1, 2, 3)
    ]
    return Report(
        title="digits",
        summary="A small run.",
        command="./launch/local.sh --config configs/digits.py",
        settings={"seed": 0, "model": {"name": "unet", "channels": 32, "widths": (1, 2)}, "data": {"path": None}},
        num_parameters=1_234_567,
        parameter_overview=OVERVIEW,
        metrics=rows,
        scores=scores,
        timing={"compile_seconds": 8.25, "train_seconds": 197.0, "images_per_second": 7893.0},
        machine={"Devices": "2 x cpu"},
        samples=folder / "samples.png",
        **diffusion_report.parts("v", "ddim", 50, 2.5, None, folder / "sampling.gif", pictures[2], pictures[3]),
    )


def written(tmp_path, report):
    write_report(tmp_path / "report.html", report)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    return text, Page(text)


def test_nothing_comes_from_outside(tmp_path, report):
    text, page = written(tmp_path, report)
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object")
        for name in ("src", "href", "srcset", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"https?:|url\(|@import", text)


def test_links_lead_somewhere_and_names_are_unique(tmp_path, report):
    _, page = written(tmp_path, report)
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    targets = [link["href"].removeprefix("#") for link in page.all("a")]
    assert targets == identities


def test_pictures_are_inside_with_a_description(tmp_path, report):
    _, page = written(tmp_path, report)
    found = []
    for attributes in page.all("img"):
        assert attributes["alt"]
        header, data = attributes["src"].split(",", 1)
        with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
            assert header == f"data:image/{(picture.format or '').lower()};base64"
            assert (attributes["width"], attributes["height"]) == tuple(map(str, picture.size))
            found.append((picture.format, np.asarray(picture.convert("RGB"))[0, 0, 0]))
    # samples, noising, denoising, animation
    assert found == [("PNG", 0), ("PNG", 3), ("PNG", 2), ("GIF", 1)]


def test_says_what_it_is_given(tmp_path, report):
    _, page = written(tmp_path, report)
    for words in (
        "A small run.",
        "./launch/local.sh --config configs/digits.py",
        "model.channels 32",
        "model.widths 1, 2",
        "1,234,567 in the network",
        "conv/kernel (3, 3) 9",
        "Total: 17 -- 68 bytes",
        "Generated to test 2.5",
        "Training to test 1.25 ± 0.05",
        "Read as the class asked for 97.5%",
        "The same for real test images 99.0%",
        "one 95.0%",
        "Features classifier-digits-64",
        "Classifier · seed 3",
        "Compile 8.2 s",
        "Train 3 min 17 s",
        "Images per second 7,893",
        "Devices 2 x cpu",
        "in 50 steps",
        "is 2.5 here",
        "least noise",
        "most noise",
    ):
        assert words in page.text
    assert "data.path" not in page.text  # unset
    assert "FID" not in page.text


def test_charts_are_named_and_noise_levels_in_order(tmp_path, report):
    _, page = written(tmp_path, report)
    labels = [svg["aria-label"] for svg in page.all("svg")]
    assert labels[0].startswith("Training loss. loss: 1 at step 10")
    assert re.fullmatch(r"Training loss by noise level. least noise: 2 .*; most noise: 0.5 .*", labels[1])


def test_every_noise_level_has_its_line(tmp_path, report):
    rows = [{"step": 1, "loss": 1.0, **{f"loss_noise_{i}_of_12": float(i) for i in range(1, 13)}}]
    _, page = written(tmp_path, dataclasses.replace(report, metrics=rows))
    spoken = page.all("svg")[1]["aria-label"]
    names = re.findall(r"(least noise|noise level \d+ of 12|most noise): (\d+) at", spoken)
    assert [int(value) for _, value in names] == list(range(1, 13))
    assert len({name for name, _ in names}) == 12


def test_text_is_escaped(tmp_path, report):
    evil = '<script>alert("x")</script>&'
    scores = {**report.scores, "read_as_requested_per_class": {evil: 1.0}, "protocol": {evil: evil}}
    hostile = dataclasses.replace(
        report,
        title=evil,
        summary=evil,
        command=evil,
        settings={evil: evil},
        parameter_overview=OVERVIEW.replace("conv/bias", evil).replace("Total", evil),
        scores=scores,
        machine={evil: evil},
        **diffusion_report.parts("v", evil),
    )
    text, page = written(tmp_path, hostile)
    assert "<script" not in text
    assert page.text.count(evil) >= 10


def test_parts_that_are_missing_are_left_out(tmp_path):
    _, page = written(tmp_path, Report(title="empty", summary="", command="run"))
    assert [link["href"] for link in page.all("a")] == ["#repeat"]
    assert not page.all("img") and not page.all("svg")


def test_pixel_scores_have_no_classes(tmp_path, report):
    scores = {
        "frechet_distance_pixels": 0.5,
        "frechet_distance_pixels_train_test": 0.0,
        "frechet_distance_pixels_train_test_std": 0.0,
        "frechet_distance_pixels_ratio": None,
        "protocol": {},
    }
    _, page = written(
        tmp_path, dataclasses.replace(report, scores=scores, **diffusion_report.parts("v", "ddim", 50, 1.0))
    )
    assert "images averaged down to 8 by 8 Generated to test 0.5" in page.text
    assert "class that was asked" not in page.text
    assert "Guidance" not in page.text


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v", "score", "velocity", "edm"])
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "heun"])
def test_formulas_of_every_kind_are_well_formed(tmp_path, report, prediction, sampler):
    _, page = written(
        tmp_path,
        dataclasses.replace(
            report, **diffusion_report.parts(prediction, sampler, 50, 2.5, noising=Image.new("RGB", (9, 9)))
        ),
    )
    blocks = [attributes for attributes in page.all("math") if attributes.get("display") == "block"]
    assert len(blocks) == (5 if sampler != "heun" else 4)


def test_bits_per_dimension_are_told_with_their_estimate(tmp_path):
    bits = {"mean": 3.1416, "standard_error": 0.02, "images": 64, "estimate": "bound <b>"}
    write_report(tmp_path / "report.html", Report("t", "s", "c", scores={"bits_per_dimension": bits, "protocol": {}}))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "3.142 ± 0.02 bits" in page and "64 images; bound &lt;b&gt;" in page


def test_sections_and_curves_of_a_method_are_shown(tmp_path, report):
    rows = [{"step": 10 * i, "loss": 1.0, "game": 2.0 * i} for i in (1, 2)]
    own = {"latents": ("Latents", "<p>a walk</p>")}
    told = dataclasses.replace(
        report,
        metrics=rows,
        before_training={},
        after_training=own,
        training_words="<p>why</p>",
        curves={"game": "Game"},
    )
    text, page = written(tmp_path, told)
    assert "Latents a walk" in page.text and "From noise to image" not in page.text and "<p>why</p>" in text
    assert any(svg["aria-label"].startswith("Game. game: 2 at step 10") for svg in page.all("svg"))


def test_scores_taken_in_training_become_charts(tmp_path, report):
    rows = [*report.metrics, {"step": 30, "loss": 0.1, "fd": 7.5}, {"step": 40, "loss": 0.1, "fd": 5.5}]
    _, page = written(tmp_path, dataclasses.replace(report, metrics=rows, training_scores=("fd",)))
    assert len(page.all("svg")) == len(written(tmp_path, report)[1].all("svg")) + 1
    assert "Fd of images drawn while training" in page.text


def test_scores_of_known_networks_and_sweeps_stand_with_their_protocols(tmp_path, report):
    published = {"kid": 0.125, "interval_95": [1.0, 2.0], "protocol": {"extractor": "net<b>", "covariance": "N - 1"}}
    results = [{"sampler": "ddim", "num_steps": steps, "guidance_scale": None, "fd": 100 / steps} for steps in (10, 20)]
    sweep = {"score": "fd", "results": results, "protocol": {"scored_images": 512}}
    scores = dict(report.scores) | {"scores": published, "sweep": sweep}
    text, page = written(tmp_path, dataclasses.replace(report, scores=scores, sweep=Image.new("RGB", (30, 20))))
    assert (
        "net&lt;b&gt;" in text and "Kid 0.125" in page.text and "1, 2" in page.text and "Covariance N - 1" in page.text
    )
    assert "Sampler Num steps Fd ddim 10 10 ddim 20 5" in page.text  # no column for what no way has
    assert "Scored images 512" in page.text
    assert len(page.all("img")) == len(written(tmp_path, report)[1].all("img")) + 1
