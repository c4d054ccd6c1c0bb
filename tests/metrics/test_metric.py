"""A metric is a file and a line of the table: the command computes it, or says what it needs."""

import numpy as np
import pytest

from diffusion_jax.metrics import measure, protocols, table
from tests.metrics import toy_metric
from tests.metrics.test_command import FAKE, REAL, rows, run, sets, toys  # noqa: F401


@pytest.fixture(autouse=True)
def added(monkeypatch):
    """The line of the table."""
    for metric in (toy_metric.GAP, toy_metric.SPREAD, toy_metric.LENGTH, toy_metric.PAIRS):
        monkeypatch.setitem(table.METRICS, metric.name, metric)


@pytest.fixture
def asked(sets):  # noqa: F811
    """What the images of fake/ were asked for by."""
    (sets / "prompts.txt").write_text("".join(f"{'a ' * (i % 7)}cat\n" for i in range(50)))
    (sets / "labels.txt").write_text("".join(f"{i % 3}\n" for i in range(50)))
    np.savez(sets / "fifty.npz", REAL[:50])
    return sets


def test_the_command_computes_it(asked, toys, capsys):  # noqa: F811
    result, err = run(
        capsys, "--generated", "fake", "--reference", "fifty.npz", "--metrics", "gap,class-spread,prompt-length,pairs",
        "--prompts", "prompts.txt", "--labels", "labels.txt",
    )  # fmt: skip
    fake, real = rows(FAKE)["features"], rows(REAL[:50])["features"]
    assert result["gap"] == pytest.approx(np.abs(fake.mean(0) - real.mean(0)).max(), rel=1e-5)
    means = np.stack([fake[np.arange(50) % 3 == label].mean(0) for label in range(3)])
    assert result["class_spread"] == pytest.approx((means.max(0) - means.min(0)).max(), rel=1e-5)
    assert result["prompt_length"] == pytest.approx(np.corrcoef(np.arange(50) % 7, fake[:, 0])[0, 1], rel=1e-5)
    assert result["pair_distance"] == pytest.approx(np.square(fake - real).mean(), rel=1e-5)
    assert "the largest distance of two means" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gap",), "--reference SET is missing, which metric 'gap' compares with"),
        (
            ("prompt-length",),
            "metric 'prompt-length' needs prompts, one a line for each image of --generated: ",
        ),
        (("class-spread",), "metric 'class-spread' needs labels, one a line for each image of --generated: "),
        (("pairs", "--reference", "real"), "needs pairs, image i with image i: --generated holds 50 images and"),
        (("class-spread", "--labels", "prompts.txt"), "--labels prompts.txt: 'cat' is no class"),
        (("prompt-length", "--prompts", "short.txt"), "--prompts short.txt: holds 1 lines for 50 images"),
        (("class-spread", "--labels", "labels.txt", "--skip-bad"), "must be of every image: leave out --skip-bad"),
    ],
)
def test_what_is_missing_is_one_line(asked, toys, capsys, arguments, message):  # noqa: F811
    (asked / "short.txt").write_text("a cat\n")
    (line,) = run(capsys, "--generated", "fake", "--metrics", *arguments, code=2)
    assert message in line


def test_its_record_says_how_it_is_called_and_which_way_is_better():
    assert measure.Names(protocols.INCEPTION).main("gap") == "gap"
    assert measure.Names("dinov2-vits14").main("class-spread") == "class_spread_dinov2_vits14"
    assert measure.is_higher_better("class_spread_dinov2_vits14") and not measure.is_higher_better("gap")


def test_every_record_is_whole():
    """Each is under its own name, says what it is, and has a number among those it gives."""
    for name, metric in table.METRICS.items():
        assert name == metric.name and metric.help and metric.of_generated
        assert metric.number(protocols.INCEPTION)
    assert set(table.DEFAULT_METRICS) | set(table.DEFAULT_WITHOUT_REFERENCE) <= set(table.METRICS)


def test_the_score_itself_refuses_what_is_missing():
    side = measure.Side(None, rows=np.ones((3, 2)), num_images=3)
    for metric, message in (("class-spread", "needs labels: there are 0 for 3"), ("prompt-length", "needs prompts")):
        with pytest.raises(ValueError, match=message):
            measure.score([metric], side, None, protocols.get("tf"))
    other = measure.Side(None, rows=np.ones((4, 2)), num_images=4)
    with pytest.raises(ValueError, match="compares image i with image i: there are 3 generated images and 4"):
        measure.score(["pairs"], side, other, protocols.get("tf"))
