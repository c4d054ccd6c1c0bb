"""Sections that every report has, whatever was trained: curves of the training, protocol, time, settings."""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffusion_jax.figures import curves, page

_NOISE_BIN = re.compile(r"(\w+)_noise_(\d+)_of_(\d+)")


def training_charts(
    metrics: Sequence[Mapping[str, Any]], name: str, heading: str, are_shares: bool = False
) -> list[str]:
    """Figures of a metric in rows of metrics.jsonl: its curve, and one for each noise level; none without it."""
    steps, values = curves.series(metrics, name)
    if not len(steps):
        return []
    reach = len(steps) // 25
    charts = [
        page.figure(
            curves.line_chart({name: (steps, values)}, title=heading, y_label=name, reach=reach, are_shares=are_shares),
            f"{heading}: averages between log lines, and their moving average." if reach else f"{heading}.",
        )
    ]
    bins = _noise_bins(metrics, name)
    if bins:
        lines = {label: curves.series(metrics, part) for part, label in bins.items()}
        lines = {label: (steps, curves.smoothed(values, reach)) for label, (steps, values) in lines.items()}
        chart = curves.line_chart(lines, title=f"{heading} by noise level", y_label=name, are_shares=are_shares)
        charts.append(page.figure(chart, f"The same {name}, split by how much noise the images had."))
    return charts


def _noise_bins(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, str]:
    """metric name -> legend text, the least noisy first."""
    found = {match[0]: match for row in rows for key in row if (match := _NOISE_BIN.fullmatch(key))}
    numbers = {key: (int(match[2]), int(match[3])) for key, match in found.items() if match[1] == name}
    ordered = sorted(numbers.items(), key=lambda item: item[1])
    return {
        key: "least noise" if i == 1 else "most noise" if i == n else f"noise level {i} of {n}"
        for key, (i, n) in ordered
    }


def protocol(facts: Mapping[str, Any]) -> str:
    """What scores depend on, as a table that can be folded away."""
    rows = [(title(key), text(value)) for key, value in _flat(facts)]
    table = page.table(rows, caption="What these numbers depend on; compare only numbers of equal protocols.")
    return page.details("Protocol", table, is_open=len(rows) <= 30)


def time(timing: Mapping[str, float], machine: Mapping[str, str]) -> str:
    """What was spent, by name with the unit at its end (*_seconds, *_per_second), and on what."""
    parts = []
    if timing:
        rows = [(title(re.sub("_seconds$", "", key)), _quantity(key, value)) for key, value in timing.items()]
        parts.append(page.table(rows, caption="Time"))
    if machine:
        parts.append(page.table([(key, text(value)) for key, value in machine.items()], caption="Machine"))
    return f'<div class="columns">{"".join(parts)}</div>' if parts else ""


def settings(tree: Mapping[str, Any], parameter_overview: str) -> str:
    """Every field that is set, and clu's table of the parameters."""
    rows = [(key, text(value)) for key, value in _flat(tree) if value is not None]
    table = page.table(rows, ("Field", "Value"))
    parts = [page.details(f"All {len(rows)} settings", table, is_open=len(rows) <= 60)] if rows else []
    if parameter_overview:
        header, body, totals = _parsed_overview(parameter_overview)
        overview = page.table(body, header) + f'<p class="note">{html.escape(totals)}</p>'
        parts.append(page.details(f"All {len(body)} parameter arrays", overview))
    return "".join(parts)


def _parsed_overview(overview: str) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and the lines below clu's table, which is drawn with | and +."""
    lines = overview.strip().splitlines()
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines if line.startswith("|")]
    totals = " ".join(line for line in lines if line and line[0] not in "|+")
    return (cells[0], cells[1:], totals) if cells else ([], [], totals)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def text(value: Any) -> str:
    """A value of a table."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(text, value))
    return str(value)


def title(key: str) -> str:
    """A key as words; a symbol stays as it is."""
    words = key.replace("_", " ").replace(".", " · ").replace("frechet", "Fréchet")
    return words[:1].upper() + words[1:] if len(words) > 1 else words


def _quantity(key: str, value: float) -> str:
    return duration(value) if key.endswith("_seconds") else f"{value:,.4g}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def short_count(count: int) -> str:
    """A count to three digits."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)
