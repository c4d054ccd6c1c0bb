"""Curves over training as inline SVG, in the colours and fonts of the page that holds it."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

# In units of the SVG, which are about pixels on a wide screen; a phone shows the chart at two thirds of this.
WIDTH, HEIGHT = 480, 290
LEFT, RIGHT, TOP, BOTTOM = 58, 20, 12, 44
# Points of a line; more of them cannot be seen and make the page large.
MOST_POINTS = 400


def series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[Array, Array]:
    """Steps and values of one metric in the rows of metrics.jsonl; rows without it (or with null) are left out."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = np.array(points, np.float64).reshape(-1, 2).T
    return steps, values


def smoothed(values: ArrayLike, reach: int) -> Array:
    """Mean of each value and its neighbours, with weights that fall to zero at a distance of `reach` + 1 points.

    Centred, so that the curve does not lag behind; near the ends there are fewer neighbours.
    """
    values = np.asarray(values, np.float64)
    weights = reach + 1 - np.abs(np.arange(-reach, reach + 1.0))
    sums, totals = (np.convolve(x, weights)[reach : reach + len(x)] for x in (values, np.ones_like(values)))
    return sums / totals


def line_chart(
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str,
    x_label: str = "step",
    y_label: str = "loss",
    reach: int = 0,
    are_shares: bool = False,
) -> str:
    """HTML of an <svg> with one line for each series and, for more than one, a legend.

    The y axis is logarithmic if all values are positive and span more than a factor of five; shares of a whole have one
    from 0 to 1. Colours are the CSS
    variables --line-1 to --line-6 of the page, from the first line to the last.

    Args:
      lines: legend text -> (steps, values). Values that are not finite are left out.
      title: what a screen reader says before the first and last value of each line.
      x_label, y_label: of the axes.
      reach: points on each side over which a moving average is drawn on top of the values; 0 draws only the values.
      are_shares: whether the values are parts of one.
    """
    data = {label: _finite(*points) for label, points in lines.items()}
    data = {label: points for label, points in data.items() if len(points[0])}
    if not data:
        return '<p class="note">No values were recorded.</p>'
    all_x, all_y = (np.concatenate(values) for values in zip(*data.values(), strict=True))
    x_ticks = [tick for tick in MaxNLocator(5, integer=True).tick_values(0, all_x.max()) if 0 <= tick <= all_x.max()]
    x_axis = _Axis(0.0, all_x.max(), LEFT, WIDTH - RIGHT)
    logarithmic = bool(all_y.min() > 0 and all_y.max() / all_y.min() > 5) and not are_shares
    y_axis, y_ticks = _y_axis(np.array([0.0, 1.0]) if are_shares else all_y, logarithmic)

    parts = []
    for tick in y_ticks:
        y = y_axis(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:.4g}</text>')
    for tick in x_ticks:
        parts.append(
            f'<text x="{x_axis(tick):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{_count(tick)}</text>'
        )
    middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<text x="{middle_x:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{html.escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(13 {middle_y:.0f}) rotate(-90)" text-anchor="middle">{html.escape(y_label)}</text>'
    )
    spoken, legend = [], []
    for index, (label, (x, y)) in enumerate(data.items()):
        number = round(index * 5 / max(len(data) - 1, 1)) + 1
        spoken.append(f"{label}: {y[0]:.4g} at {x_label} {_count(x[0])}, {y[-1]:.4g} at {x_label} {_count(x[-1])}")
        colour = f'style="--colour: var(--line-{number})"'
        legend.append(f"<li {colour}>{html.escape(label)}</li>")
        if reach:
            parts.append(f'<path class="line faint" {colour} d="{_path(x_axis, y_axis, x, y)}"/>')
            y = smoothed(y, reach)
        parts.append(f'<path class="line" {colour} d="{_path(x_axis, y_axis, x, y)}"/>')
    svg = (
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}. {html.escape("; ".join(spoken))}">{"".join(parts)}</svg>'
    )
    return svg + (f'<ul class="legend">{"".join(legend)}</ul>' if len(data) > 1 else "")


class _Axis:
    """Maps values from [low, high] to SVG units from `start` to `end`."""

    def __init__(self, low: float, high: float, start: float, end: float, logarithmic: bool = False):
        self._transform = math.log if logarithmic else float
        self._low, self._high = self._transform(low), self._transform(high)
        self._start, self._end = start, end

    def __call__(self, value: float) -> float:
        span = self._high - self._low
        share = (self._transform(value) - self._low) / span if span else 0.5
        return self._start + share * (self._end - self._start)


def _y_axis(values: Array, logarithmic: bool) -> tuple[_Axis, list[float]]:
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        low, high = low / 1.1, high * 1.1
        decades = math.log10(high / low)
        subs = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
        ticks = LogLocator(subs=subs, numticks=10).tick_values(low, high)
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
        low, high = low - margin, high + margin
        ticks = MaxNLocator(5).tick_values(low, high)
    axis = _Axis(low, high, HEIGHT - BOTTOM, TOP, logarithmic)
    return axis, [float(tick) for tick in ticks if low <= tick <= high]


def _path(x_axis: _Axis, y_axis: _Axis, x: Array, y: Array) -> str:
    pieces = np.array_split(np.stack([x, y]), min(len(x), MOST_POINTS), axis=1)
    points = [f"{x_axis(piece[0].mean()):.1f} {y_axis(piece[1].mean()):.1f}" for piece in pieces]
    # A line of no length with round ends shows a single point.
    return "M" + "L".join(points if len(points) > 1 else points * 2)


def _finite(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    kept = np.isfinite(x) & np.isfinite(y)
    return x[kept], y[kept]


def _count(value: float) -> str:
    return f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1000:g}k" if value >= 10_000 else f"{value:g}"
