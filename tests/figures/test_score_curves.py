"""The plot of a sweep: a panel more where guidance varies, a line for each way of sampling."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from diffusion_jax.figures import score_curves


def entry(sampler, steps, scale):
    return {
        "sampler": sampler, "num_steps": steps, "network_evaluations": 2 * steps, "guidance_scale": scale,
        "fid": steps + (scale or 0),
    }  # fmt: skip


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws results and returns the axes."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *rest, **more: (figures.append(self), save(self, *rest, **more))
    )

    def draw(results):
        score_curves.write_score_curves(tmp_path / "sweep.png", results, "fid")
        image = Image.open(io.BytesIO((tmp_path / "sweep.png").read_bytes()))
        assert np.asarray(image.convert("L")).std() > 5
        return figures[-1].axes

    return draw


def lines(axis):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.get_lines()}


def test_guidance_adds_a_panel(drawn):
    results = [entry(s, n, g) for s in ("ddim", "heun") for n in (8, 4) for g in (1.0, 3.0)]
    first, second = drawn(results)
    assert lines(first)["heun, guidance 3"] == ([8, 16], [7, 11])  # in the order of the evaluations
    assert lines(second)["ddim, 8 steps"] == ([1, 3], [9, 11])
    assert len(lines(first)) == len(lines(second)) == 4
    assert first.get_ylabel() == "fid"


def test_without_classes_there_is_one_panel(drawn):
    (axis,) = drawn([entry("ddim", n, None) for n in (2, 4)])
    assert list(lines(axis).values()) == [([4, 8], [2, 4])]
    assert axis.get_legend() is None
