"""Curves go where their values are, and hold what the page needs."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from diffusion_jax.figures import curves


def parsed(chart):
    svg = chart[: chart.index("</svg>") + len("</svg>")]
    root = ElementTree.fromstring(svg)
    paths = [
        np.array([[float(n) for n in point.split()] for point in re.split("[ML]", path.attrib["d"])[1:]])
        for path in root.iter("path")
    ]
    return root, paths


def test_series_leaves_out_rows_without_the_value():
    rows = [{"step": 1, "loss": 2.0}, {"step": 2, "other": 1.0}, {"step": 3, "loss": None}, {"step": 4, "loss": 0.5}]
    steps, values = curves.series(rows, "loss")
    assert steps.tolist() == [1, 4] and values.tolist() == [2.0, 0.5]
    assert curves.series(rows, "missing")[0].size == 0


def test_smoothing():
    line = np.arange(20.0)
    np.testing.assert_allclose(curves.smoothed(line, 3)[3:-3], line[3:-3])  # no lag
    np.testing.assert_allclose(curves.smoothed(np.full(5, 2.0), 3), 2.0)  # unbiased at the ends
    np.testing.assert_allclose(curves.smoothed([0.0, 4.0, 0.0], 1), [4 / 3, 2.0, 4 / 3])
    np.testing.assert_array_equal(curves.smoothed([3.0, 1.0], 0), [3.0, 1.0])


def test_points_are_at_their_values():
    """Linear axes: equal steps are equally far apart, larger values higher up, all inside the frame."""
    _, (path,) = parsed(curves.line_chart({"a": ([0, 10, 20], [1.0, 2.0, 3.0])}, title="t"))
    assert path[:, 0].tolist() == [
        curves.LEFT,
        (curves.LEFT + curves.WIDTH - curves.RIGHT) / 2,
        curves.WIDTH - curves.RIGHT,
    ]
    assert path[0, 1] - path[1, 1] == pytest.approx(path[1, 1] - path[2, 1], abs=0.2) and path[0, 1] > path[2, 1]
    assert (path[:, 1] > curves.TOP).all() and (path[:, 1] < curves.HEIGHT - curves.BOTTOM).all()


def test_a_wide_range_is_logarithmic():
    root, (path,) = parsed(curves.line_chart({"a": ([1, 2, 3], [1.0, 0.1, 0.01])}, title="t"))
    assert path[1, 1] - path[0, 1] == pytest.approx(path[2, 1] - path[1, 1], abs=0.2)
    texts = [text.text for text in root.iter("text")]
    assert "0.1" in texts and "1" in texts


def test_shares_have_an_axis_from_nothing_to_all():
    root, (path,) = parsed(curves.line_chart({"a": ([1, 2, 3], [0.9, 0.5, 0.1])}, title="t", are_shares=True))
    assert path[1, 1] - path[0, 1] == pytest.approx(path[2, 1] - path[1, 1], abs=0.2)
    texts = [text.text for text in root.iter("text")]
    assert "0" in texts and "1" in texts


def test_smoothed_curve_is_drawn_over_the_values():
    noisy = np.random.default_rng(0).uniform(1, 2, 100)
    _, (values, smooth) = parsed(curves.line_chart({"a": (np.arange(100), noisy)}, title="t", reach=10))
    assert np.ptp(smooth[:, 1]) < 0.6 * np.ptp(values[:, 1])


def test_legend_and_spoken_text_name_the_lines_and_are_escaped():
    lines = {"a<b": ([1, 2], [5.0, 4.0]), "c": ([1, 2], [3.0, 2.5])}
    chart = curves.line_chart(lines, title='loss & "more"')
    root, paths = parsed(chart)
    assert len(paths) == 2
    assert root.attrib["aria-label"] == 'loss & "more". a<b: 5 at step 1, 4 at step 2; c: 3 at step 1, 2.5 at step 2'
    assert '<li style="--colour: var(--line-1)">a&lt;b</li>' in chart
    assert "legend" not in curves.line_chart({"a": ([1, 2], [5.0, 4.0])}, title="t")


def test_long_runs_are_thinned_and_odd_values_left_out():
    steps = np.arange(100_000)
    _, (path,) = parsed(curves.line_chart({"a": (steps, np.linspace(2, 1, 100_000))}, title="t"))
    assert len(path) == curves.MOST_POINTS
    _, (path,) = parsed(curves.line_chart({"a": ([1, 2, 3], [1.0, np.nan, 1.5]), "b": ([], [])}, title="t"))
    assert len(path) == 2
    _, (path,) = parsed(curves.line_chart({"a": ([7], [1.0])}, title="t"))
    assert len(path) == 2 and (path[0] == path[1]).all()
    assert "<svg" not in curves.line_chart({"a": ([1], [np.inf])}, title="t")
